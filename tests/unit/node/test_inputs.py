"""Fetching inputs: against servers on loopback that behave well, badly, and unlike what they promised; S3 is moto's."""

from __future__ import annotations

import asyncio
import hashlib
import http.server
import ipaddress
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from moto.server import ThreadedMotoServer

from torg_node.input_client import Allowance, InputClient, InputInvalid, InputUnavailable
from torg_node.input_sources import fetch_hugging_face, fetch_ollama, fetch_s3, fetch_url
from torg_protocol.inputs import HuggingFaceInput, OllamaInput, S3Input, UrlInput

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
WEIGHTS = bytes(range(256)) * 5_000
Answer = tuple[int, dict[str, str], bytes]


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Origin:
    """`answers`: by path, what is said; a list: one after the other, the last one for ever."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes | Answer | list[Answer]] = {}
        self.asked: list[str] = []
        self.authorized: list[str] = []  # the paths that were asked for with the header, and it
        origin = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                origin.asked.append(self.path)
                if "authorization" in self.headers:
                    origin.authorized.append(f"{self.path} {self.headers['authorization']}")
                found = origin.answers.get(self.path, (404, {}, b"no"))
                if isinstance(found, list):
                    found = found.pop(0) if len(found) > 1 else found[0]
                status, headers, body = found if isinstance(found, tuple) else (200, {}, found)
                self.send_response(status)
                for name, value in ({"content-length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def origin() -> Iterator[Origin]:
    found = Origin()
    yield found
    found.close()


def client(*allow: str, left_bytes: int = 64 << 20, opened: Any = LOOPBACK) -> InputClient:
    return InputClient(allow=allow, allowance=Allowance(left_bytes), opened=opened)


def a_url(origin: Origin, path: str = "/file", data: bytes = WEIGHTS) -> UrlInput:
    return UrlInput(kind="url", path="/data/file", url=origin.url + path, digest=digest(data))


async def test_a_file_by_url_is_checked_against_its_digest(origin: Origin, tmp_path: Path) -> None:
    origin.answers = {"/file": WEIGHTS}
    async with client(origin.host) as source:
        await fetch_url(source, a_url(origin), tmp_path / "file")
        with pytest.raises(InputInvalid, match=f"its digest is {digest(WEIGHTS)}, not"):
            await fetch_url(source, a_url(origin, data=b"other"), tmp_path / "other")

    assert (tmp_path / "file").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({}, "HTTP status 404"),
        ({"/file": (302, {"location": "http://127.0.0.2:1/x"}, b"")}, "not among those that the input names"),
        ({"/file": (302, {"location": "/file"}, b"")}, "too many redirects"),
        ({"/file": b"x" * 2_000}, "do not fit into resources.disk"),
    ],
)
async def test_what_can_never_be_fetched_is_the_inputs_fault(
    origin: Origin, tmp_path: Path, answers: dict[str, Any], reason: str
) -> None:
    origin.answers = answers
    async with client(origin.host, left_bytes=1_000) as source:
        with pytest.raises(InputInvalid, match=reason):
            await fetch_url(source, a_url(origin), tmp_path / "file")

    assert not (tmp_path / "file").exists() or (tmp_path / "file").stat().st_size <= 1_000


async def test_private_addresses_are_refused_also_when_they_are_named(origin: Origin, tmp_path: Path) -> None:
    origin.answers = {"/file": WEIGHTS}
    async with client(origin.host, opened=()) as source:
        with pytest.raises(InputInvalid, match="not on the public internet"):
            await fetch_url(source, a_url(origin), tmp_path / "file")

    assert origin.asked == []


async def test_what_fails_for_now_is_tried_again(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torg_node.input_client._FIRST_PAUSE_S", 0.001)
    busy, cut_off = (503, {}, b"busy"), (200, {"content-length": "999"}, b"half")
    origin.answers = {"/file": [busy, cut_off, (200, {}, WEIGHTS)], "/down": (500, {}, b"down")}
    async with client(origin.host) as source:
        await fetch_url(source, a_url(origin), tmp_path / "file")
        with pytest.raises(InputUnavailable, match="HTTP status 500"):
            await fetch_url(source, a_url(origin, "/down"), tmp_path / "down")
    nobody = "127.0.0.1:9"
    async with client(nobody) as source:
        away = UrlInput(kind="url", url=f"http://{nobody}/x", digest=digest(b""), path="/x")
        with pytest.raises(InputUnavailable, match="502"):
            await fetch_url(source, away, tmp_path / "away")

    assert (tmp_path / "file").read_bytes() == WEIGHTS
    assert origin.asked == ["/file"] * 3 + ["/down"] * 5


async def test_a_token_goes_to_the_address_and_not_where_it_redirects_to(origin: Origin, tmp_path: Path) -> None:
    elsewhere = Origin()
    try:
        elsewhere.answers = {"/cdn": WEIGHTS}
        origin.answers = {"/file": (302, {"location": f"{elsewhere.url}/cdn"}, b""), "/closed": (401, {}, b"no")}
        async with client(origin.host, elsewhere.host) as source:
            await fetch_url(source, a_url(origin), tmp_path / "file", {"bearer_token": "t0ken"})
            with pytest.raises(InputInvalid, match="401: not open to everybody, or not for these credentials"):
                await fetch_url(source, a_url(origin, "/closed"), tmp_path / "closed", {"bearer_token": "t0ken"})
    finally:
        elsewhere.close()

    assert origin.authorized == ["/file Bearer t0ken", "/closed Bearer t0ken"]
    assert (elsewhere.asked, elsewhere.authorized) == (["/cdn"], [])


# --- S3 --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    put(f"{url}/models", b"")
    for name in ("bert/config.json", "bert/weights/a.bin", "other.txt"):
        put(f"{url}/models/{name}", f"content of {name}".encode())
    put(f"{url}/models/secret/key", b"mine", "private")
    yield url
    server.stop()


def put(url: str, data: bytes, acl: str = "public-read") -> None:
    # The first request makes moto load all that it knows of S3, which takes seconds.
    httpx.put(url, content=data, headers={"x-amz-acl": acl}, trust_env=False, timeout=120).raise_for_status()


def an_s3(endpoint: str, url: str = "s3://models/bert", *files: str) -> S3Input:
    return S3Input(kind="s3", path="/models", url=url, endpoint=endpoint, files=files)


def tree(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("files", [(), ("weights/a.bin",)])
async def test_what_is_below_a_prefix_or_named_comes_from_s3(s3: str, tmp_path: Path, files: tuple[str, ...]) -> None:
    item = an_s3(s3, "s3://models/bert", *files)
    async with client(*item.hosts) as source:
        await fetch_s3(source, item, tmp_path / "to")

    everything = {name: f"content of bert/{name}" for name in ("config.json", "weights/a.bin")}
    assert tree(tmp_path / "to") == ({"weights/a.bin": everything["weights/a.bin"]} if files else everything)


async def test_a_private_bucket_opens_for_an_access_key(s3: str, tmp_path: Path) -> None:
    """moto looks at who asks; whether the signature is right it does not check."""
    item = an_s3(s3, "s3://models/secret")
    key = {"credentials.access_key_id": "AKIA0", "credentials.secret_access_key": "s3cret"}
    async with client(*item.hosts) as source:
        await fetch_s3(source, item, tmp_path / "to", key)

    assert tree(tmp_path / "to") == {"key": "mine"}


@pytest.mark.parametrize(
    ("url", "files", "left_bytes", "opened", "kind", "reason"),
    [
        ("s3://models/bert", ("none",), 1 << 20, LOOPBACK, InputInvalid, "not there"),
        ("s3://models/nothing", (), 1 << 20, LOOPBACK, InputInvalid, "nothing is there"),
        ("s3://no-bucket/x", (), 1 << 20, LOOPBACK, InputInvalid, "not there"),
        ("s3://models/bert", (), 30, LOOPBACK, InputInvalid, "do not fit"),
        ("s3://models/secret", (), 1 << 20, LOOPBACK, InputInvalid, "not open to everybody"),
        ("s3://models/bert", (), 1 << 20, (), InputInvalid, "its host is refused"),
    ],
)
async def test_what_s3_does_not_give_is_said(
    s3: str,
    tmp_path: Path,
    url: str,
    files: tuple[str, ...],
    left_bytes: int,
    opened: Any,
    kind: type[Exception],
    reason: str,
) -> None:
    item = an_s3(s3, url, *files)
    async with client(*item.hosts, left_bytes=left_bytes, opened=opened) as source:
        with pytest.raises(kind, match=reason):
            await fetch_s3(source, item, tmp_path / "to")


# --- Hugging Face, Ollama: their protocols, spoken by a server on loopback (SIMULATED: the sites themselves are not asked) ------------


def hugging_face(origin: Origin, **changes: Any) -> None:
    first = [
        {"type": "directory", "path": "onnx"},
        {"type": "file", "path": "config.json", "size": 2},
    ]
    second = [
        {"type": "file", "path": "onnx/model.bin", "size": len(WEIGHTS), "lfs": {"oid": digest(WEIGHTS)[7:]}},
    ]
    listing = "/api/models/org/model/tree/main?recursive=true"
    link = {"link": f'<{origin.url}/page2>; rel="next"'}
    origin.answers = {
        listing: (200, link, json.dumps(first).encode()),
        "/page2": json.dumps(second).encode(),
        "/org/model/resolve/main/config.json": b"{}",
        "/org/model/resolve/main/onnx/model.bin": (302, {"location": f"{origin.url}/cdn"}, b""),
        "/cdn": WEIGHTS,
        **changes,
    }


async def test_a_repository_of_hugging_face_comes_whole_or_in_part(origin: Origin, tmp_path: Path) -> None:
    hugging_face(origin)
    whole = HuggingFaceInput(kind="huggingface", path="/m", repo="org/model")
    part = whole.model_copy(update={"files": ("config.json",)})
    async with client(origin.host) as source:
        await fetch_hugging_face(source, whole, tmp_path / "whole", origin.url)
        await fetch_hugging_face(source, part, tmp_path / "part", origin.url)
        missing = whole.model_copy(update={"files": ("nothing.bin",)})
        with pytest.raises(InputInvalid, match=r"has no nothing\.bin"):
            await fetch_hugging_face(source, missing, tmp_path / "missing", origin.url)

    assert origin.authorized == []
    async with client(origin.host) as source:
        await fetch_hugging_face(source, part, tmp_path / "gated", origin.url, {"token": "hf_x"})
    assert [line.rpartition(" ")[2] for line in origin.authorized] == ["hf_x"] * 3  # two pages of names, one file
    assert (tmp_path / "whole/onnx/model.bin").read_bytes() == WEIGHTS
    assert tree(tmp_path / "part") == {"config.json": "{}"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"/cdn": WEIGHTS[:-1] + b"!"}, "its digest is"),
        ({"/org/model/resolve/main/config.json": b"{ }"}, "3 bytes came, not 2"),
        ({"/page2": json.dumps([{"type": "file", "path": "../x", "size": 1}]).encode()}, "not a name for a file"),
    ],
)
async def test_a_repository_that_gives_something_else_is_refused(
    origin: Origin, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    hugging_face(origin, **change)
    item = HuggingFaceInput(kind="huggingface", path="/m", repo="org/model")
    async with client(origin.host) as source:
        with pytest.raises(InputInvalid, match=reason):
            await fetch_hugging_face(source, item, tmp_path / "to", origin.url)


async def test_a_model_of_ollama_comes_as_its_server_has_it(origin: Origin, tmp_path: Path) -> None:
    def described(data: bytes) -> dict[str, Any]:
        return {"digest": digest(data), "size": len(data)}

    manifest = {"schemaVersion": 2, "config": described(b"{}"), "layers": [described(WEIGHTS)]}
    blobs = {f"/v2/library/tiny/blobs/{digest(data)}": data for data in (b"{}", WEIGHTS)}
    origin.answers = {"/v2/library/tiny/manifests/latest": json.dumps(manifest).encode(), **blobs}
    async with client(origin.host) as source:
        await fetch_ollama(source, OllamaInput(kind="ollama", model="tiny"), tmp_path / "m", origin.url)

    assert (tmp_path / "m/blobs" / digest(WEIGHTS).replace(":", "-")).read_bytes() == WEIGHTS
    kept = tmp_path / "m/manifests/registry.ollama.ai/library/tiny/latest"
    assert json.loads(kept.read_text()) == manifest


async def test_a_fetch_can_be_given_up_at_any_moment(origin: Origin, tmp_path: Path) -> None:
    origin.answers = {"/file": (200, {"content-length": "999"}, b"the rest never comes")}
    async with client(origin.host) as source:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await fetch_url(source, a_url(origin), tmp_path / "file")
