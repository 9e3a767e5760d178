"""The place to which a registry sends everybody for a token (Docker's token authentication): one user with a password gets one, nobody else."""

from __future__ import annotations

import base64
import datetime as dt
import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

_SERVICE, _ISSUER = "test-registry", "test-tokens"


@dataclass
class TokenServer:
    url: str
    username: str
    password: str
    asked: list[str] = field(default_factory=list)  # what those who asked showed
    _key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _ISSUER)])
        builder = x509.CertificateBuilder(name, name, self._key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(dt.datetime(2020, 1, 1))  # noqa: DTZ001  X.509 counts in UTC
        builder = builder.not_valid_after(dt.datetime(2120, 1, 1))  # noqa: DTZ001
        self._certificate = builder.sign(self._key, hashes.SHA256())

    def registry_config(self, folder: Path) -> str:
        bundle = folder / "tokens.pem"
        bundle.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))
        about = f"realm: {self.url}, service: {_SERVICE}, issuer: {_ISSUER}, rootcertbundle: {bundle}"
        return f"auth: {{token: {{{about}}}}}"

    def token(self, *scopes: str) -> str:
        """A JSON web token for scopes like "repository:NAME:pull,push", signed as docker-registry wants it."""
        access = [dict(zip(("type", "name", "actions"), scope.split(":"), strict=True)) for scope in scopes]
        now = int(time.time())
        claims = {
            "iss": _ISSUER,
            "sub": self.username,
            "aud": _SERVICE,
            "nbf": now - 60,
            "iat": now,
            "exp": now + 300,
            "jti": secrets.token_hex(8),
            "access": [{**item, "actions": item["actions"].split(",")} for item in access],
        }
        certificate = self._certificate.public_bytes(serialization.Encoding.DER)
        header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(certificate).decode()]}
        signed = f"{_coded(json.dumps(header).encode())}.{_coded(json.dumps(claims).encode())}"
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_coded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def answer(self, authorization: str, query: str) -> tuple[int, bytes]:
        self.asked.append(authorization)
        expected = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        if authorization != f"Basic {expected}":
            return 401, b"{}"
        return 200, json.dumps({"token": self.token(*parse_qs(query).get("scope", []))}).encode()


@contextmanager
def running_token_server(username: str, password: str) -> Iterator[TokenServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = server.answer(self.headers.get("authorization", ""), urlsplit(self.path).query)
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server = TokenServer(f"http://127.0.0.1:{http.server_port}/token", username, password)
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


def _coded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
