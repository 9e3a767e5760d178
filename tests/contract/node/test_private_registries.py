"""Images of a registry that is not open to everybody: pulled with a job's own credentials by a real engine, and lent to no other job without its own."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from tests.support.docker_registry import Login, running_registry
from tests.support.pulling_host import PullingHost, pulling_host
from tests.support.searching import files_below, holds
from tests.support.token_server import running_token_server
from torg_node import pulls, registry
from torg_node.cache import forget_private_marks, remove, warm_names
from torg_node.executors.docker_archive import File
from torg_node.executors.errors import ExecutorError, ExecutorUnavailable, ImageForbidden, RegistryRefused
from torg_node.executors.port import PreparedImage, RegistryAuth
from torg_protocol.errors import TooLarge

pytestmark = [pytest.mark.engine, pytest.mark.root]
WRONG = RegistryAuth(username="puller", password="guessed-in-vain")


@dataclass
class Host(PullingHost):
    @property
    def auth(self) -> RegistryAuth:
        assert self.registry.login is not None
        return RegistryAuth(self.registry.login.username, self.registry.login.password)

    async def pushed(self, name: str, *files: File) -> str:
        alone = File("of", os.urandom(8))  # an image that nothing else on this engine is a name of
        return await self.registry.push(self.engine, self.socket, name, alone, *files)

    async def prepare(self, image: str, auth: RegistryAuth | None, **settings: object) -> PreparedImage:
        async def tell(step: str, done_bytes: int = 0, total_bytes: int | None = None) -> None:
            """Nobody listens."""

        changed = self.settings.model_copy(update=settings)
        return await pulls.prepare_image(image, self.executor, self.cache, changed, tell, auth)

    async def refusal(self, image: str, auth: RegistryAuth | None) -> ExecutorError:
        with pytest.raises(ExecutorError) as caught:
            await self.prepare(image, auth)
        return caught.value


@pytest.fixture
async def host(engine_socket: Path, tmp_path: Path) -> AsyncIterator[Host]:
    async with (
        running_registry(tmp_path / "registry", Login()) as closed,
        pulling_host(Host, engine_socket, tmp_path, closed) as host,
    ):
        yield host


async def test_the_jobs_credentials_pull_it_and_are_told_nowhere(
    host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    image = await host.pushed("trainer")
    prepared = await host.prepare(image, host.auth)
    (entry,) = host.cache.entries()

    assert (entry.engine_image, entry.engine_id, entry.is_private) == (image, prepared.reference, True)
    assert warm_names(host.cache) == (), "everybody reads the offer"
    password = host.auth.password.encode()
    assert not [path for path in files_below(tmp_path) if holds(path, password)]
    assert host.auth.password not in caplog.text + repr(host.auth)


async def test_its_size_is_known_before_the_pull(host: Host) -> None:
    image = await host.pushed("large", File("data/large", bytes(range(256)) * 4096))
    asked = host.registry.blobs_asked()
    with pytest.raises(TooLarge, match="packed, as its registry says"):
        await host.prepare(image, host.auth, max_image_bytes=10_000)

    assert host.registry.blobs_asked() == asked


@pytest.mark.parametrize(("auth", "code"), [(WRONG, "registry_login_refused"), (None, "registry_login_needed")])
async def test_wrong_or_no_credentials_are_the_jobs_own_mistake(
    host: Host, auth: RegistryAuth | None, code: str
) -> None:
    image = await host.pushed("closed")
    error = await host.refusal(image, auth)

    assert isinstance(error, RegistryRefused)
    assert (error.code, error.field, error.value) == (code, "image", image)
    assert WRONG.password not in str(error)
    assert host.cache.entries() == []


async def test_where_the_registry_is_not_asked_first_the_engine_says_it(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unknown(*_: object) -> None:
        """As of a registry that does not answer the node itself."""

    monkeypatch.setattr(pulls, "packed_bytes", unknown)
    image = await host.pushed("closed")

    assert (await host.refusal(image, WRONG)).code == "registry_login_refused"
    assert (await host.refusal(image, None)).code == "registry_login_needed"


@pytest.mark.parametrize("shown", ["nothing", "a guess"])
async def test_what_lies_here_is_not_given_to_who_does_not_show_credentials(host: Host, shown: str) -> None:
    image = await host.pushed("trainer")
    prepared = await host.prepare(image, host.auth)
    name = image.rpartition(":")[0]
    auth = None if shown == "nothing" else WRONG
    for asked in (image, f"{name}@{prepared.digest}"):
        assert isinstance(await host.refusal(asked, auth), RegistryRefused)
        assert (await host.prepare(asked, host.auth)).reference == prepared.reference
    for asked in (prepared.reference, prepared.reference.removeprefix("sha256:")[:12]):
        assert isinstance(await host.refusal(asked, host.auth), ImageForbidden)


async def test_it_stays_private_when_the_books_have_forgotten_it_and_while_it_is_coming(host: Host) -> None:
    image = await host.pushed("trainer")
    await host.engine.images.pull(image, auth={"username": host.auth.username, "password": host.auth.password})
    host.cache.expect_pulled(image, private=True)  # another lease is at it
    assert isinstance(await host.refusal(image, None), RegistryRefused)
    await host.prepare(image, host.auth)
    host.cache.keep_pulled(image, await host.executor.prepare(image), private=True)
    host.cache.drop_pulled(image)

    assert isinstance(await host.refusal(image, None), RegistryRefused)


async def test_its_mark_goes_with_it_and_not_before(host: Host) -> None:
    image = await host.pushed("trainer")
    prepared = await host.prepare(image, host.auth)
    (entry,) = host.cache.entries()
    marks = host.cache.private_marks()
    assert list(marks) == [prepared.reference]
    assert await forget_private_marks(host.cache, host.executor.must_pull) == []

    await remove(host.cache, host.executor.forget_image, entry)
    host.cache.expect_pulled(image, private=True)  # another lease begins to pull it again
    assert await forget_private_marks(host.cache, host.executor.must_pull) == []
    host.cache.drop_expected(image)
    assert not host.cache.drop_private_mark(prepared.reference, marks[prepared.reference] - 1), "marked anew meanwhile"
    assert await forget_private_marks(host.cache, host.executor.must_pull) == [prepared.reference]
    assert host.cache.private_marks() == {}
    assert isinstance(await host.refusal(image, None), RegistryRefused)


async def test_once_it_is_gone_it_is_pulled_anew(host: Host) -> None:
    image = await host.pushed("trainer")
    first = await host.prepare(image, host.auth)
    (entry,) = host.cache.entries()
    await remove(host.cache, host.executor.forget_image, entry)

    assert isinstance(await host.refusal(image, None), RegistryRefused)
    assert (await host.prepare(image, host.auth)).reference == first.reference


async def test_a_newer_one_under_the_name_comes_when_the_registry_has_the_old_one_no_more(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = await host.pushed("moving", File("version", b"1"))
    first = await host.prepare(image, host.auth)
    newer = await host.engine.images.inspect(first.reference)
    assert await host.prepare(image, host.auth) == first

    async def gone(*_: object) -> bool:
        """docker-registry forgets no manifest while it runs; others do."""
        return False

    monkeypatch.setattr(pulls, "may_have", gone)
    again = await host.prepare(image, host.auth)
    assert (again.reference, again.digest) == (newer["Id"], first.digest)
    assert isinstance(await host.refusal(image, WRONG), RegistryRefused), "the pull itself asks for credentials"


async def test_a_registry_that_does_not_answer_is_not_the_jobs_fault(host: Host, tmp_path: Path) -> None:
    image = await host.pushed("trainer")
    prepared = await host.prepare(image, host.auth)
    with pytest.raises(ExecutorUnavailable) as caught:
        await registry.may_have(
            image.replace(host.registry.host, "127.0.0.1:9"), prepared.digest, ["127.0.0.1:9"], None
        )

    assert caught.value.code == "registry_unavailable"


async def test_behind_a_token_server(engine_socket: Path, tmp_path: Path) -> None:
    login = Login()
    with running_token_server(login.username, login.password) as tokens:
        async with (
            running_registry(tmp_path / "registry", login, tokens) as closed,
            pulling_host(Host, engine_socket, tmp_path, closed) as host,
        ):
            image = await host.pushed("trainer")
            assert (await host.refusal(image, WRONG)).code == "registry_login_refused"
            assert (await host.refusal(image, None)).code == "registry_login_needed"
            assert await registry.packed_bytes(image, "amd64", [closed.host], host.auth)
            prepared = await host.prepare(image, host.auth)
            by_token = RegistryAuth(token=tokens.token("repository:trainer:pull"))
            assert await host.prepare(image, by_token) == prepared
            (entry,) = host.cache.entries()
            await remove(host.cache, host.executor.forget_image, entry)
            assert (await host.prepare(image, by_token)).reference == prepared.reference
            assert (await host.refusal(image, replace(by_token, token="made-up"))).code == "registry_login_refused"


async def test_a_password_goes_to_no_token_server_in_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIMULATED: the answers of a public registry; no host of the internet is asked."""
    asked: list[tuple[str, dict[str, str]]] = []

    async def ask(_client: object, url: str, headers: dict[str, str]) -> registry.Answer:
        asked.append((url, dict(headers)))
        challenge = {"www-authenticate": 'Bearer realm="http://tokens.example/",service="s"'}
        return registry.Answer(401, httpx.Headers(challenge), b"{}")

    monkeypatch.setattr(registry.InputClient, "ask", ask)
    with pytest.raises(RegistryRefused):
        await registry.packed_bytes("registry.example/x:1", "amd64", (), RegistryAuth("user", "password"))

    assert [url.partition("?")[0] for url, _ in asked] == [
        "https://registry.example/v2/x/manifests/1",
        "http://tokens.example/",
    ]
    assert not any("authorization" in headers for _, headers in asked)
