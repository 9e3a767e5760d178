"""What fails for one is told, and holds up nobody but itself."""

from __future__ import annotations

import pytest

from torg_marketplace.flow.one_by_one import one_by_one
from torg_protocol.errors import Conflict, Unavailable


@pytest.mark.parametrize(("error", "expected"), [(Conflict("no"), ["a", "b", "c"]), (Unavailable("gone"), ["a", "b"])])
async def test_the_others_have_their_turn_unless_the_trouble_is_everybodys(
    error: Exception, expected: list[str]
) -> None:
    seen = []

    async def work(name: str) -> int:
        seen.append(name)
        if name == "b":
            raise error
        return 2

    with pytest.raises(type(error)) as raised:
        await one_by_one("abc", work)
    assert (raised.value, seen) == (error, expected)
    assert await one_by_one("ac", work) == 4
