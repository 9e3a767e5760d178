"""What the SDK and `torg show` say to somebody who tries things out: completion, calls that are none, why a job failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import torg
from tests.unit.client.test_top import job, lease
from torg.cli.jobs import _last_words
from torg.functions import function_job
from torg_protocol.api import JobPage
from torg_protocol.cases import QuotaView
from torg_protocol.errors import NotFound
from torg_protocol.states import EndReason, JobState


def test_a_shell_completes_the_names_of_the_package() -> None:
    assert {"Client", "TorgError", "read_spec_file"} <= set(dir(torg))
    assert all(hasattr(torg, name) for name in dir(torg))


def test_a_value_in_the_place_of_a_function_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(torg.Invalid, match=r"client\.run") as refused:
        function_job(tmp_path, 3, (), {}, {})  # type: ignore[arg-type]
    assert (refused.value.code, refused.value.value) == ("function_not_callable", "3")


def test_a_page_is_no_list_and_says_what_to_go_through() -> None:
    """pydantic gives pairs of names and values: `for job in client.jobs()` ran twice, with nothing that is a job."""
    page = JobPage(jobs=(job("job_1", JobState.QUEUED),), next_cursor="job_1")
    for use in (iter, list, dict):
        with pytest.raises(TypeError, match=r"JobPage is no list: go through its \.jobs; next_cursor says"):
            use(page)
    with pytest.raises(TypeError, match="ask for its members by their names"):
        list(QuotaView(name="storage", unit="bytes", used=1, limit=None))


class Logs:
    """Of the client, what `torg show` asks for beside the job."""

    def __init__(self, text: str | None) -> None:
        self.text = text

    async def logs(self, job_id: str, stream: str) -> str:
        assert stream == "stderr"
        if self.text is None:
            raise NotFound("the log is gone")
        return self.text


@pytest.mark.parametrize(
    ("text", "exit_code", "said"),
    [
        ("bwrap: execvp pyton: No such file\n", 127, ["exit code 127: its command was not found", "execvp pyton"]),
        ("".join(f"line {number}\n" for number in range(50)), 1, ["last words on stderr", "line 40", "line 49"]),
        (None, 126, ["exit code 126"]),
    ],
)
async def test_a_job_that_failed_by_itself_is_shown_with_its_last_words(
    text: str | None, exit_code: int, said: list[str]
) -> None:
    client: Any = Logs(text)
    failed = job("a", JobState.FAILED, lease(exit_code=exit_code), reason=EndReason.FAILED_EXIT)
    shown = await _last_words(client, failed)
    assert all(words in shown for words in said)
    assert len(shown.splitlines()) <= 13
    assert "line 39" not in shown
    assert await _last_words(client, job("b", JobState.SUCCEEDED, lease(), reason=EndReason.COMPLETED)) == ""
