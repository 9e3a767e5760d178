"""Why a sandbox could not run a program. What the program itself did wrong is no error but its outcome."""

from __future__ import annotations

from torg_protocol.errors import Unavailable


class SandboxUnavailable(Unavailable):
    """This host cannot sandbox programs at all, or not now. `hint` says what to install."""

    default_code = "sandbox_unavailable"


class SandboxStartFailed(SandboxUnavailable):
    """This container could not be set up on this host; the message is bubblewrap's or the kernel's own."""

    status = 500
    default_code = "sandbox_start_failed"
