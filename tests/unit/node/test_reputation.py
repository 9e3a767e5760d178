"""What the owner is told when the marketplace has nothing to tell of the node."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from torg_node.reputation import fetch_reputation
from torg_node.setup import market_at
from torg_protocol.errors import Invalid, TorgError


class Server(http.server.HTTPServer):
    status = 404


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.send_error(self.server.status)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "code"), [(404, "node_unknown"), (503, "reputation_unavailable")])
def test_the_answer_is_said_in_the_owners_words(server: Server, status: int, code: str) -> None:
    server.status = status
    with pytest.raises(TorgError) as refused:
        fetch_reputation(f"http://127.0.0.1:{server.server_port}", "node1")
    assert refused.value.code == code
    assert "mozilla" not in str(refused.value)


def test_an_address_without_its_scheme_is_refused_with_an_example() -> None:
    with pytest.raises(Invalid, match="https://market") as refused:
        market_at("market.example:8700")
    assert refused.value.code == "marketplace_url_invalid"
