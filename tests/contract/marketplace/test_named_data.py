"""Named data, through the SDK against the real API."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from scripts.market_processes import script
from tests.support.actors import join, make_client, spec
from tests.support.api_server import ServedWorld, served_world
from torg.client import AsyncClient
from torg.config import ClientConfig
from torg.spec_file import read_spec_file
from torg_chain.wallet import save_keypair
from torg_protocol.accounts import Scope
from torg_protocol.errors import Conflict, Invalid, NotFound
from torg_protocol.jobspec import load_job_spec


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedWorld]:
    async with served_world(tmp_path) as opened:
        yield opened


@pytest.fixture
async def client(served: ServedWorld, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(ClientConfig(tmp_path / "home", served.url), served.client.key) as opened:
        yield opened


def a_folder(root: Path) -> Path:
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "table.csv").write_text("a,b\n1,2\n")
    (root / "notes.txt").write_text("of it")
    return root


async def test_what_is_put_comes_back(client: AsyncClient, tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "set")

    put = await client.put_data("set", folder)
    file = await client.put_data("notes", folder / "notes.txt")
    got = await client.get_data("set", tmp_path / "copies" / "set")
    await client.get_data("notes", tmp_path / "copies" / "notes")

    assert got == put
    assert (tmp_path / "copies" / "set" / "deep" / "table.csv").read_text() == "a,b\n1,2\n"
    assert [path.name for path in (tmp_path / "copies" / "notes").iterdir()] == ["notes.txt"]
    assert sorted(path.name for path in (tmp_path / "copies").iterdir()) == ["notes", "set"]  # nothing else is left
    assert await client.list_data() == (file, put)


async def test_a_name_moves_and_goes(client: AsyncClient, tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "set")
    first = await client.put_data("set", folder)
    (folder / "notes.txt").write_text("changed")

    second = await client.put_data("set", folder)

    assert second.digest != first.digest
    assert await client.list_data() == (second,)
    assert await client.remove_data("set") == second
    assert await client.list_data() == ()
    with pytest.raises(NotFound) as unknown:
        await client.get_data("set", tmp_path / "copy")
    assert (unknown.value.code, unknown.value.value) == ("data_unknown", "set")


async def test_names_are_of_one_account(client: AsyncClient, served: ServedWorld, tmp_path: Path) -> None:
    mine = await client.put_data("set", a_folder(tmp_path / "set"))
    other = await make_client(served.world)
    async with AsyncClient(ClientConfig(tmp_path / "other", served.url), other.key) as stranger:
        assert await stranger.list_data() == ()
        with pytest.raises(NotFound):
            await stranger.remove_data("set")
        body = {"digest": mine.digest, "size_bytes": mine.size_bytes}
        with pytest.raises(Invalid) as refused:  # to name a blob one must have sent it
            await stranger._transport.request("PUT", "/v1/data/theirs", body=body)
    assert refused.value.code == "blob_missing"
    assert await client.list_data() == (mine,)


async def test_what_cannot_be_done_is_said_and_nothing_is_touched(client: AsyncClient, tmp_path: Path) -> None:
    await client.put_data("set", a_folder(tmp_path / "set"))
    with pytest.raises(Conflict, match="something already"):
        await client.get_data("set", tmp_path / "set")
    assert (tmp_path / "set" / "notes.txt").read_text() == "of it"
    with pytest.raises(Invalid) as missing:
        await client.put_data("gone", tmp_path / "nowhere")
    assert missing.value.code == "path_missing"
    for name in ("../jobs", "", "Ü", "x" * 33):
        with pytest.raises(Invalid):
            await client.remove_data(name)


async def test_a_job_reads_what_a_name_stood_for_when_it_was_submitted(
    served: ServedWorld, client: AsyncClient, tmp_path: Path
) -> None:
    await join(served.world)
    first = await client.put_data("set", a_folder(tmp_path / "set"))
    raw = spec(inputs=[{"data": "set", "path": "/data"}])

    quoted = await client.quote(load_job_spec(raw))
    job = await served.client.submit({**raw, "workspace": None})
    (tmp_path / "set" / "notes.txt").write_text("changed")
    second = await client.put_data("set", tmp_path / "set")
    later = await served.client.submit({**raw, "workspace": None})

    assert [(item.name, item.path, item.digest) for item in quoted.inputs] == [("set", "/data", first.digest)]
    pinned = {"kind": "blob", "path": "/data", "unpack": True, "name": "set"}
    assert job.spec.wire()["inputs"] == [{**pinned, "digest": first.digest, "size_bytes": first.size_bytes}]
    assert later.spec.wire()["inputs"] == [{**pinned, "digest": second.digest, "size_bytes": second.size_bytes}]


async def test_a_name_that_is_not_there_is_named_with_its_line_and_the_closest_one(
    client: AsyncClient, tmp_path: Path
) -> None:
    await client.put_data("mnist", a_folder(tmp_path / "set"))
    text = "version: 1\ncommand: [python]\ninputs:\n  - data: mnits\n    path: /data\n"
    (tmp_path / "job.yaml").write_text(text)
    file = read_spec_file(tmp_path / "job.yaml")

    with pytest.raises(Invalid) as by_api:
        await client.quote(file.check())
    with pytest.raises(Invalid) as by_file:
        await client._pinned(file.check(), file)

    assert (by_api.value.code, by_api.value.field, by_api.value.value) == ("data_unknown", "inputs.0.data", "mnits")
    assert by_api.value.hint == 'did you mean "mnist"?'
    assert str(by_file.value).startswith(f"{tmp_path}/job.yaml, line 4: inputs.0.data: you have no data of this name")


async def test_pages_and_scopes(served: ServedWorld, client: AsyncClient, tmp_path: Path) -> None:
    view = await client.put_data("set", a_folder(tmp_path / "set"))
    for number in range(4):
        await client.put_data(f"set-{number}", tmp_path / "set")
    async with served.wallet() as http:
        first = (await http.get("/v1/data?limit=3")).json()
        second = (await http.get(f"/v1/data?limit=3&cursor={first['next_cursor']}")).json()
        assert [item["name"] for item in first["data"] + second["data"]] == ["set", *(f"set-{n}" for n in range(4))]
        assert (second["next_cursor"], first["total_bytes"]) == (None, 5 * view.size_bytes)
        assert (await http.get("/v1/data?cursor=00")).json()["code"] == "cursor_invalid"
    async with served.bearer((await served.api_key(scopes=[Scope.JOBS_READ])).secret) as http:
        assert (await http.get("/v1/data")).status_code == 403


async def test_the_commands(served: ServedWorld, tmp_path: Path) -> None:
    save_keypair(served.client.key, tmp_path / "home" / "wallet.json")
    a_folder(tmp_path / "Set")

    async def torg(*arguments: str, code: int = 0) -> str:
        argv = [script("torg"), "--home", str(tmp_path / "home"), "--marketplace", served.url, "data", *arguments]
        process = await asyncio.create_subprocess_exec(*argv, stdout=PIPE, stderr=STDOUT, cwd=tmp_path)
        output, _ = await process.communicate()
        assert process.returncode == code, output.decode()
        return output.decode()

    assert "nothing is kept" in await torg("ls")
    assert (await torg("put", "Set")).startswith("set  ")
    listed = json.loads(await torg("ls", "--json"))
    assert [item["name"] for item in listed["data"]] == ["set"]
    assert " in all" in await torg("ls")
    await torg("get", "set")
    assert (tmp_path / "set" / "notes.txt").read_text() == "of it"
    assert "[destination_exists]" in await torg("get", "set", code=1)
    assert await torg("rm", "set") == "set is gone\n"
    assert "[data_unknown]" in await torg("rm", "set", code=1)
    assert "[path_missing]" in await torg("put", "nowhere", code=1)
    assert "[data_name_invalid]" in await torg("put", "Set", "--name", "a name", code=1)
