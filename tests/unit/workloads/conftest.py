from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cnn import uninterrupted, workspace
from tests.support.zygote import Zygote

__all__ = ["uninterrupted", "workspace", "zygote"]


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    parent = Zygote()
    yield parent
    parent.close()
