#!/usr/bin/env bash
# Builds the wheel, installs it per role into empty environments, runs every console script, and checks that a role brings
# only what it needs.   wheel_smoke.sh BIN
set -euo pipefail
bin=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$bin/python" -m build --quiet --wheel --no-isolation --outdir "$work/dist" .

try() { # try EXTRA SCRIPT FORBIDDEN...
  local extra=$1 script=$2; shift 2
  local env=$work/env-${extra:-client}
  "$bin/python" -m venv "$env"
  "$env/bin/pip" install --quiet --disable-pip-version-check -c <(grep -E '^[a-z0-9_.-]+==' requirements.lock | sed 's/ *\\$//') "$(echo "$work"/dist/*.whl)${extra:+[$extra]}"
  (cd "$work" && "$env/bin/$script" --help >/dev/null)
  for module in "$@"; do
    if "$env/bin/python" -c "import $module" 2>/dev/null; then
      echo "wheel smoke: ${extra:-client} must install without $module" >&2
      exit 1
    fi
  done
  echo "wheel smoke: ${extra:-client}: $script runs, without: $*"
}
try "" torg fastapi sqlalchemy torch aiodocker aiohttp
try node torg-node sqlalchemy fastapi torch
try marketplace torg-marketplace aiodocker torch
try localnet torg-localnet sqlalchemy torch
