#!/usr/bin/env bash
# Makes a virtual environment with the locked dependencies and sees to the Debian packages. Safe to repeat; quick when done.
#   setup.sh PYTHON VENV run|test
set -euo pipefail
python=$1 venv=$2 purpose=$3

need() { # need COMMAND PACKAGE: note the Debian package when the command is missing
  command -v "$1" >/dev/null 2>&1 || PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 || packages+=("$2")
}

packages=()
need bwrap bubblewrap
need mkfs.ext4 e2fsprogs
"$python" -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)
# Not `grep -q`, which would end ldconfig early with a broken pipe: a failure, by pipefail.
PATH="$PATH:/usr/sbin:/sbin" ldconfig -p 2>/dev/null | grep 'libseccomp\.so\.2' >/dev/null || packages+=(libseccomp2)
if [ "$purpose" = test ]; then
  need dockerd docker.io
  need iptables iptables
  need ip iproute2
  need busybox busybox-static
  need runsc runsc
  need docker-registry docker-registry
  need curl curl
  need zstd zstd
  need nats-server nats-server
  compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || packages+=(postgresql)
fi
if [ ${#packages[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "setup: please install these Debian packages first: ${packages[*]}" >&2
    exit 1
  fi
  echo "setup: installing Debian packages: ${packages[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  if [[ " ${packages[*]} " == *" postgresql "* ]]; then
    # The tests start a server of their own: Debian's package need not make and start one for the whole machine.
    mkdir -p /etc/postgresql-common/createcluster.d
    echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.d/torg-tests.conf
  fi
  apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

stamp=$venv/.ready-$(cat requirements.lock pyproject.toml | sha256sum | cut -c1-16)
[ -e "$stamp" ] && exit 0
echo "setup: installing locked Python packages into $venv (once)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
export PIP_DISABLE_PIP_VERSION_CHECK=1
"$venv/bin/pip" install --quiet --require-hashes -r requirements.lock
# Torch's build differs by machine (CPU, CUDA), so it is pinned by version and not by hash.
"$venv/bin/pip" install --quiet "torch==2.13.0"
"$venv/bin/pip" install --quiet --no-deps --no-build-isolation -e .
rm -f "$venv"/.ready-*
touch "$stamp"
