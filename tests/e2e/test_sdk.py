"""The SDK's page, as it is written, and functions that go wrong, against a market that `torg.testing` makes."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import torg
from torg.functions import function_job, read_result
from torg.testing import LocalMarket, local_market

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "use-the-sdk.md"
SMALL: dict[str, Any] = {"resources": {"memory": "128MiB", "disk": "64MiB"}, "limits": {"max_duration": "1m"}}
pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMarket]:
    with local_market(tmp_path_factory.mktemp("market")) as market:
        yield market


def test_the_page_works_as_it_is_written(market: LocalMarket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = market.config()
    monkeypatch.setenv("TORG_HOME", str(config.home))
    monkeypatch.setenv("TORG_MARKETPLACE", config.marketplace_url)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(block, names)  # noqa: S102 - the page's own examples


def test_what_is_no_plain_data_is_named_and_another_python_is_refused(
    market: LocalMarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with market.client() as client:
        with pytest.raises(torg.FunctionFailed) as refused:
            client.run(lambda: {"a": [1, {2, 3}]}, spec=SMALL)
        assert refused.value.code == "function_result_not_plain"
        assert "result.a[1] is of type set" in refused.value.message
        assert client.run(lambda: (b"\x00\xff", None, 1.5), spec=SMALL) == [b"\x00\xff", None, 1.5]
        monkeypatch.setattr("torg.functions.sys.version_info", (2, 7, 18))
        with pytest.raises(torg.FunctionFailed) as refused:
            client.run(lambda: 1, spec=SMALL)
        assert refused.value.code == "python_version_mismatch"
        assert "2.7" in refused.value.message


def test_what_cannot_travel_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    lock = threading.Lock()
    with pytest.raises(torg.Invalid) as refused:
        function_job(tmp_path, lambda: lock, (), {}, {})
    assert refused.value.code == "function_not_picklable"
    with pytest.raises(torg.Invalid) as refused:
        function_job(tmp_path, len, (), {}, {"command": ["x"]})
    assert (refused.value.code, refused.value.field) == ("function_spec_invalid", "spec.command")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"__bytes__": "?"}', '{"__bytes__": 1}'])
def test_a_result_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "result").write_text(text)
    with pytest.raises(torg.Invalid) as refused:
        read_result(tmp_path / "result")
    assert refused.value.code == "function_result_malformed"
