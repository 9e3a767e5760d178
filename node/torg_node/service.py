"""A systemd unit for the agent. Written by `torg-node install-service`; never run by the tests, which have no systemd: they look at what
`systemd-analyze verify` says of it.

KillMode=process: a stop or a restart of the unit ends the agent alone, and its containers go on. The hardening leaves what the agent needs: control groups,
namespaces and mounts for the sandbox, the container engine's socket, and its own folder.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from torg_node.settings import Settings
from torg_protocol.errors import Conflict, Invalid

SYSTEM_FOLDER = Path("/etc/systemd/system")
UNIT_NAME = "torg-node.service"
_FORBIDDEN = frozenset('%"\\\n$ ')


def unit_text(settings: Settings, program: Path) -> str:
    """Raises Invalid `path_unfit` for paths that a unit file would read differently."""
    for path in (settings.data, program):
        if _FORBIDDEN & set(str(path)):
            raise Invalid(
                "a unit file cannot name this path plainly",
                code="path_unfit",
                field="data",
                value=str(path),
                hint="use a folder without spaces, quotes, % and $",
            )
    return f"""\
[Unit]
Description=Torg node: earns with this machine
Wants=network-online.target
After=network-online.target docker.service

[Service]
Type=exec
ExecStart={program} start --data {settings.data} --log-format json
Restart=always
RestartSec=5
# An agent that stops or is updated leaves its leases running; the next start takes them over.
KillMode=process
TimeoutStopSec=30
# No Delegate=: jobs have control groups of their own beside this unit's, so that they outlive it.
UMask=0077
NoNewPrivileges=no
ProtectHome=read-only
ProtectSystem=full
ReadWritePaths={settings.data}
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=no
ProtectKernelModules=yes
ProtectKernelTunables=no
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
LimitNOFILE=65536
OOMScoreAdjust=-500

[Install]
WantedBy=multi-user.target
"""


def install(settings: Settings, folder: Path = SYSTEM_FOLDER, *, replace: bool = False) -> Path:
    """Writes the unit; starts nothing. Raises Conflict `unit_exists`, Invalid `needs_root`."""
    if folder == SYSTEM_FOLDER and os.geteuid() != 0:
        raise Invalid(
            "only root installs a system service", code="needs_root", hint="sudo, or --print and do it by hand"
        )
    path = folder / UNIT_NAME
    if path.exists() and not replace:
        raise Conflict("the unit is there already", code="unit_exists", field="file", value=str(path), hint="--replace")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(unit_text(settings, own_program()))
    return path


def own_program() -> Path:
    """Not through links: of a release that is switched to by a link, the unit is to name the link."""
    found = Path(sys.argv[0]).absolute() if Path(sys.argv[0]).name == "torg-node" else None
    return found or Path(shutil.which("torg-node") or Path(sys.executable).with_name("torg-node"))
