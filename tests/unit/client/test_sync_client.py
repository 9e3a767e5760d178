"""The blocking client is what its source says, and says when it cannot be used; what runs on threads ends with the call."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from solders.keypair import Keypair

from scripts.sync_client import CLIENT, generated
from torg.config import ClientConfig
from torg.data import unpack_stoppably
from torg.sync import Client
from torg.testing import local_market
from torg_protocol.errors import Conflict, Invalid


def test_the_file_is_what_the_script_writes() -> None:
    assert (CLIENT / "sync.py").read_text() == generated(), "run: python -m scripts.sync_client"


def test_a_closed_client_says_so_and_is_closed_again_without_a_word(tmp_path: Path) -> None:
    with Client(ClientConfig(tmp_path, "http://127.0.0.1:9"), Keypair()) as client:
        pass
    client.close()
    for call in (client.jobs, lambda: list(client.follow("job_00000000000000000000000000"))):
        with pytest.raises(Conflict) as refused:
            call()
        assert (refused.value.code, refused.value.field) == ("client_closed", "client")


def test_a_process_that_was_forked_off_is_told_to_make_a_client_of_its_own(tmp_path: Path) -> None:
    """Its loop's thread stayed with the parent: a call waited for ever."""
    with Client(ClientConfig(tmp_path, "http://127.0.0.1:9"), Keypair()) as client:
        answers = multiprocessing.get_context("fork").SimpleQueue()

        def in_the_child() -> None:
            try:
                client.jobs()
            except Conflict as error:
                client.close()
                answers.put(error.code)

        child = multiprocessing.get_context("fork").Process(target=in_the_child)
        child.start()
        child.join(timeout=120)
        if child.is_alive():
            child.kill()
            child.join()
        assert (child.exitcode, answers.empty()) == (0, False)
        assert answers.get() == "client_forked"


def test_a_callback_cannot_call_the_client_that_waits_for_it(tmp_path: Path) -> None:
    said = []
    with Client(ClientConfig(tmp_path, "http://127.0.0.1:9"), Keypair()) as client:

        async def with_a_callback() -> None:
            try:
                client.jobs()
            except Conflict as error:
                said.append(error.code)

        client._run(with_a_callback())
    assert said == ["client_busy"]


async def test_what_is_cancelled_while_it_unpacks_stops_unpacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = threading.Event(), threading.Event()

    def endless(_: Path, __: Path, *, is_wanted: Callable[[], bool]) -> None:
        begun.set()
        while is_wanted():
            pass
        ended.set()

    monkeypatch.setattr("torg.data.unpack", endless)
    unpacking = asyncio.create_task(unpack_stoppably(tmp_path / "archive", tmp_path / "copy"))
    assert await asyncio.to_thread(begun.wait, 30)
    unpacking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unpacking
    assert await asyncio.to_thread(ended.wait, 30)


def test_a_local_market_says_which_roles_are_missing_before_it_starts_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "fastapi" else object())
    with pytest.raises(Invalid) as refused, local_market(tmp_path / "market"):
        pass
    assert refused.value.code == "local_market_incomplete"
    assert "marketplace" in refused.value.message
    assert not (tmp_path / "market").exists()
