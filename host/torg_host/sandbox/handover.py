"""The shim's fork that enters the container's network; the shim itself stays where it is."""

from __future__ import annotations

import os

from torg_host.netns import hand_over_listener


def hand_over(pid: int, port: int, channel: int) -> None:
    """Raises OSError with the reason."""
    trouble, trouble_far = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            hand_over_listener(pid, port, channel)
        except BaseException as error:  # noqa: BLE001  there is nobody above: this is a forked child
            os.write(trouble_far, f"{error}".encode()[:4000] or b"failed")
        finally:
            os._exit(0)
    os.close(trouble_far)
    with open(trouble, "rb") as file:  # noqa: PTH123
        message = file.read().decode(errors="replace")
    os.waitpid(child, 0)
    if message:
        raise OSError(0, f"no listener for the container's way out: {message}")
