"""Sign-In with Solana for browsers: a wallet signs a message, and the page gets a token for an hour."""

from __future__ import annotations

from fastapi import APIRouter

from torg_marketplace.api.auth import Anybody
from torg_marketplace.api.context import TheEdge
from torg_marketplace.api.strict import StrictRoute
from torg_marketplace.flow.sign_in import ask_to_sign, open_session
from torg_protocol.sign_in import SignInChallenge, SignInProof, SignInRequest, SignInSession

router = APIRouter(prefix="/v1/siws", tags=["keys"], route_class=StrictRoute)


@router.post("/messages", dependencies=[Anybody])
async def post_sign_in_message(body: SignInRequest, edge: TheEdge) -> SignInChallenge:
    """What a wallet signs to sign in (CAIP-122): good once, for five minutes. Nothing is kept until it comes back."""
    return ask_to_sign(edge.market, edge.sign_in, body)


@router.post("/sessions", status_code=201, dependencies=[Anybody])
async def post_session(body: SignInProof, edge: TheEdge) -> SignInSession:
    """A signed message for a token with the scopes that the message names, which ends by itself."""
    return await open_session(edge.market, edge.sign_in, body)
