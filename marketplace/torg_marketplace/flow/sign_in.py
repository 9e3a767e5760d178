"""Sign-In with Solana: a message that this marketplace made and a wallet signed becomes a short session.

Nothing is kept until the wallet has signed: the nonce carries a code over the whole message, which nobody else can make. A message is good
once: its session, living or ended, has the nonce in its name.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from urllib.parse import urlsplit

from solders.pubkey import Pubkey
from solders.signature import Signature
from sqlalchemy import select

from torg_marketplace.flow.api_keys import create_api_key
from torg_marketplace.flow.unit import Market
from torg_marketplace.storage.account_models import ApiKeyRow
from torg_protocol.accounts import ApiKeyRequest
from torg_protocol.errors import Invalid, Unauthorized
from torg_protocol.ids import AccountId
from torg_protocol.sign_in import (
    CHALLENGE_LIFETIME_S,
    SignInChallenge,
    SignInMessage,
    SignInProof,
    SignInRequest,
    SignInSession,
)

SESSION_NAMES = "siws-"  # what the names of keys begin with that are sessions
_RANDOM_HEX = 32  # of a nonce's 64 digits; the others are the code
_CHAINS = {
    "5eykt4UsFv8P8NJdTREpY1vzqKqZKvdpKuc147dw2N9d": "mainnet",
    "EtWTRABZaYq6iMfeYKouRu166VU2xqa1wcaWoxkrZBG": "devnet",
    "4uhcVJyU9pJkvQyS88uRDiswHScCKQY3XQsk9EvT7Y1": "testnet",
}


@dataclass(frozen=True, slots=True)
class SignIn:
    """`domains`: of pages that may ask for it, the marketplace's own first. `secret`: the same in every process of a marketplace."""

    domains: tuple[str, ...]
    secret: bytes

    @classmethod
    def at(cls, url: str, more: tuple[str, ...], secret: bytes) -> SignIn:
        return cls((urlsplit(url).netloc.lower(), *more), secret)

    @property
    def origins(self) -> list[str]:
        """Of pages elsewhere, for CORS."""
        return [f"{_scheme(domain)}://{domain}" for domain in self.domains[1:]]


def ask_to_sign(market: Market, sign_in: SignIn, request: SignInRequest) -> SignInChallenge:
    """Raises Invalid `sign_in_domain_unknown`, `address_invalid`."""
    domain = request.domain or sign_in.domains[0]
    if domain not in sign_in.domains:
        raise Invalid(
            "pages of this domain cannot sign in here",
            code="sign_in_domain_unknown",
            field="domain",
            value=domain,
            hint=f"known: {', '.join(sign_in.domains)}; the operator adds one by TORG_MARKETPLACE_SIGN_IN_DOMAINS",
        )
    _public_key(request.address)
    issued_s = market.clock.now_ms() // 1000
    draft = SignInMessage(
        domain=domain,
        address=request.address,
        uri=f"{_scheme(domain)}://{domain}",
        chain_id=_CHAINS.get(market.network.genesis_hash, "localnet"),
        nonce=f"{market.random.bits(4 * _RANDOM_HEX):0{_RANDOM_HEX}x}" + "0" * _RANDOM_HEX,
        issued_s=issued_s,
        expires_s=issued_s + CHALLENGE_LIFETIME_S,
        session_s=request.session_s,
        scopes=tuple(sorted(set(request.scopes))),
    )
    message = _with_code(draft, sign_in.secret)
    return SignInChallenge(message=message.text, expires_at_ms=message.expires_s * 1000)


async def open_session(market: Market, sign_in: SignIn, proof: SignInProof) -> SignInSession:
    """Raises Invalid `sign_in_malformed`; Unauthorized `sign_in_not_issued`, `sign_in_expired`, `sign_in_signature_invalid`, `sign_in_replayed`."""
    message = SignInMessage.parse(proof.message)
    if message.domain not in sign_in.domains or not hmac.compare_digest(
        message.nonce, _with_code(message, sign_in.secret).nonce
    ):
        raise _refused("this marketplace did not ask to sign this message", "sign_in_not_issued")
    if message.expires_s * 1000 <= market.clock.now_ms():
        raise _refused("this message has expired", "sign_in_expired")
    if not _is_signed(message, proof.signature):
        raise _refused("the signature is not the wallet's over this message", "sign_in_signature_invalid")
    name, account = f"{SESSION_NAMES}{message.nonce[:_RANDOM_HEX]}", AccountId(message.address)
    async with market.transaction() as unit:
        used = select(ApiKeyRow.key_id).where(ApiKeyRow.account == account, ApiKeyRow.name == name)
        if await unit.session.scalar(used) is not None:
            raise _refused("this message was used before", "sign_in_replayed")
        wanted = ApiKeyRequest(name=name, scopes=message.scopes, spend_cap=0, expires_in_s=message.session_s)
        made = await create_api_key(unit, account, wanted)
    key = made.key
    return SignInSession(
        token=made.secret,
        key_id=key.key_id,
        account=key.account,
        scopes=key.scopes,
        expires_at_ms=key.expires_at_ms,
    )


def _with_code(message: SignInMessage, secret: bytes) -> SignInMessage:
    """The second half of the nonce is a code over everything else of the message."""
    random = message.nonce[:_RANDOM_HEX]
    blank = message.model_copy(update={"nonce": random + "0" * _RANDOM_HEX})
    code = hmac.new(secret, blank.text.encode(), hashlib.sha256).hexdigest()[:_RANDOM_HEX]
    return message.model_copy(update={"nonce": random + code})


def _is_signed(message: SignInMessage, signature: str) -> bool:
    try:
        return bool(Signature.from_string(signature).verify(_public_key(message.address), message.text.encode()))
    except ValueError:
        return False


def _public_key(address: str) -> Pubkey:
    try:
        return Pubkey.from_string(address)
    except ValueError:
        raise Invalid("not a Solana address", code="address_invalid", field="address", value=address) from None


def _refused(message: str, code: str) -> Unauthorized:
    return Unauthorized(message, code=code, field="message", hint="ask for a new one: POST /v1/siws/messages")


def _scheme(domain: str) -> str:
    """Browsers treat this computer as safe without encryption; everything else is https."""
    return "http" if domain.partition(":")[0] in {"localhost", "127.0.0.1"} else "https"
