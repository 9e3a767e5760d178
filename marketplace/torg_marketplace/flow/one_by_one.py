"""One after the other: what concerns many, each in transactions of its own, where one that fails must hold up nobody else."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable

from torg_protocol.errors import Unavailable

log = logging.getLogger(__name__)


async def one_by_one(ids: Iterable[str], work: Callable[[str], Awaitable[int | None]]) -> int:
    """The sum of what `work` returns. What it raises for one is raised when the others had their turn; Unavailable, which is everybody's, at
    once."""
    done, errors = 0, list[Exception]()
    for item in ids:
        try:
            done += await work(item) or 0
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - raised below
            errors.append(error)
            log.error("%s: %s", item, str(error) or type(error).__name__)  # noqa: TRY400 - with its traceback where it is raised
    if errors:
        raise errors[0]
    return done
