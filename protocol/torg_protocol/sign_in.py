"""Sign-In with Solana: the message that a browser's wallet signs, and the bodies of the API about it.

The text is that of CAIP-122 as Solana's wallets show it (feature `solana:signIn`, or `signMessage` over the same text): a first line with the
domain, the address, a sentence, then fields in a fixed order. What a session may do stands in it, under Resources, so the wallet shows it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from pydantic import Field

from torg_protocol.accounts import Scope
from torg_protocol.documents import View, Wire
from torg_protocol.errors import Invalid
from torg_protocol.ids import AccountId

CHALLENGE_LIFETIME_S = 300
MAX_SESSION_S = 86_400
STATEMENT = "Sign in to Torg. This moves no money and signs no job."
_ADDRESS = r"[1-9A-HJ-NP-Za-km-z]{32,44}"
_DOMAIN = r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?(?::[0-9]{1,5})?"
_TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"
_TEXT = re.compile(
    rf"(?P<domain>{_DOMAIN}) wants you to sign in with your Solana account:\n(?P<address>{_ADDRESS})\n\n"
    rf"{re.escape(STATEMENT)}\n\n"
    rf"URI: (?P<uri>https?://[\x21-\x7e]{{1,512}})\nVersion: 1\nChain ID: (?P<chain_id>[a-z]{{1,16}})\n"
    rf"Nonce: (?P<nonce>[0-9a-f]{{64}})\nIssued At: (?P<issued>{_TIME})\nExpiration Time: (?P<expires>{_TIME})\n"
    r"Resources:\n- urn:torg:session:(?P<session_s>[0-9]{1,6})(?P<scopes>(?:\n- urn:torg:scope:[a-z:]{1,32}){1,8})"
)
Domain = Field(pattern=f"^{_DOMAIN}$", max_length=259)


class SignInMessage(Wire):
    """`text` and `parse` are each other's inverse. Times are whole seconds since the epoch; `session_s`: how long the session lasts."""

    domain: str = Domain
    address: str = Field(pattern=f"^{_ADDRESS}$")
    uri: str
    chain_id: str
    nonce: str = Field(pattern="^[0-9a-f]{64}$")
    issued_s: int
    expires_s: int
    session_s: int
    scopes: tuple[Scope, ...]

    @property
    def text(self) -> str:
        scopes = "".join(f"\n- urn:torg:scope:{scope}" for scope in self.scopes)
        return (
            f"{self.domain} wants you to sign in with your Solana account:\n{self.address}\n\n{STATEMENT}\n\n"
            f"URI: {self.uri}\nVersion: 1\nChain ID: {self.chain_id}\nNonce: {self.nonce}\n"
            f"Issued At: {_written(self.issued_s)}\nExpiration Time: {_written(self.expires_s)}\n"
            f"Resources:\n- urn:torg:session:{self.session_s}{scopes}"
        )

    @classmethod
    def parse(cls, text: str) -> SignInMessage:
        """Raises Invalid `sign_in_malformed` for anything but this very form."""
        found = _TEXT.fullmatch(text)
        try:
            if found is None:
                raise ValueError
            names = found["scopes"].split("\n- urn:torg:scope:")[1:]
            message = cls(
                domain=found["domain"],
                address=found["address"],
                uri=found["uri"],
                chain_id=found["chain_id"],
                nonce=found["nonce"],
                issued_s=_read(found["issued"]),
                expires_s=_read(found["expires"]),
                session_s=int(found["session_s"]),
                scopes=tuple(Scope(name) for name in names),
            )
        except ValueError:
            raise Invalid(
                "not a message that a marketplace asked to sign",
                code="sign_in_malformed",
                field="message",
                hint="send the text of POST /v1/siws/messages as it is",
            ) from None
        return message


class SignInRequest(Wire):
    """POST /v1/siws/messages. `domain`: of the page that asks, with its port when it has one; default the marketplace's own."""

    address: str = Field(pattern=f"^{_ADDRESS}$", description="the wallet, in base58")
    domain: str | None = Field(default=None, pattern=f"^{_DOMAIN}$", max_length=259)
    scopes: tuple[Scope, ...] = Field(default=(Scope.JOBS_READ, Scope.DATA_READ), min_length=1, max_length=len(Scope))
    session_s: int = Field(default=3_600, ge=60, le=MAX_SESSION_S)


class SignInChallenge(View):
    """`message`: what the wallet signs, byte for byte in UTF-8. Good once, until `expires_at_ms`."""

    message: str
    expires_at_ms: int


class SignInProof(Wire):
    """POST /v1/siws/sessions. `signature`: in base58, by the address in the message."""

    message: str = Field(max_length=2_048)
    signature: str = Field(pattern=r"^[1-9A-HJ-NP-Za-km-z]{64,88}$")


class SignInSession(View):
    """`token`: for `Authorization: Bearer`. It is an API key that ends by itself and can spend nothing: jobs are paid under caps that the wallet
    signs. DELETE /v1/keys/{key_id}, signed by the wallet, ends it earlier."""

    token: str
    key_id: str
    account: AccountId
    scopes: tuple[Scope, ...]
    expires_at_ms: int


def _written(time_s: int) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _read(text: str) -> int:
    return int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())
