"""Where the money is: one cluster, one program, one token, one operator."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from solders.hash import Hash
from solders.pubkey import Pubkey

# Fixed addresses of the localnet, the same on every machine; on other clusters the operator publishes its own.
LOCALNET_PROGRAM_ID = "TorgVau1t1111111111111111111111111111111111"
LOCALNET_MINT = "TorgTestUSD11111111111111111111111111111111"


class Network(BaseModel):
    """`rpc_url` may be any node of the cluster; everything else must be agreed on by all parties."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rpc_url: str
    genesis_hash: str
    program_id: str
    mint: str
    decimals: int = Field(ge=0, le=18)
    operator_config: str

    @property
    def chain_id(self) -> bytes:
        """32 bytes that bind signed messages to this cluster."""
        return bytes(Hash.from_string(self.genesis_hash))

    @property
    def program_pubkey(self) -> Pubkey:
        return Pubkey.from_string(self.program_id)

    @property
    def mint_pubkey(self) -> Pubkey:
        return Pubkey.from_string(self.mint)

    @property
    def operator_pubkey(self) -> Pubkey:
        return Pubkey.from_string(self.operator_config)
