"""A node works under no grant that it cannot be paid for: each thing that may be wrong has its own code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from solders.hash import Hash
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from torg.cli.__main__ import cli
from torg_chain.network import LOCALNET_MINT, LOCALNET_PROGRAM_ID, Network
from torg_chain.vault import VaultState, token_account_of
from torg_node.grant_check import NodeFacts, overlap_with, why_not, why_not_vault
from torg_node.proofs import publish
from torg_protocol.caps import Commitment, SignedCap
from torg_protocol.ids import AccountId, JobId, LeaseId, NodeId, VaultAddress
from torg_protocol.jobspec import JobSpec, load_job_spec
from torg_protocol.messages import Grant, SignedGrant
from torg_protocol.offers import Inventory, Offer
from torg_protocol.vault_messages import CapMessage, sign_message

NOW_MS = 1_800_000_000_000
OPERATOR, STRANGER, SESSION = (Keypair.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
NODE, PAYOUT, DEPOSITOR, VAULT, CONFIG = (str(Keypair.from_seed(bytes([n]) * 32).pubkey()) for n in range(4, 9))
NETWORK = Network(
    rpc_url="http://127.0.0.1:1",
    genesis_hash=str(Hash(bytes(range(32)))),
    program_id=LOCALNET_PROGRAM_ID,
    mint=LOCALNET_MINT,
    decimals=6,
    operator_config=CONFIG,
)
OFFER = Offer(
    node=NodeId(NODE),
    sequence=1,
    marketplace=str(OPERATOR.pubkey()),
    price_per_gpu_hour=1_000,
    slots=1,
    inventory=Inventory(
        source="simulated", gpu_class="cpu", gpus=(), cpu_millis=1_000, memory_bytes=1 << 30, disk_bytes=1 << 30
    ),
    executor="fake",
    isolation=("sandbox",),
    payout_address=PAYOUT,
    max_unpaid=10_000,
)
FACTS = NodeFacts(
    node=NodeId(NODE),
    marketplace=str(OPERATOR.pubkey()),
    network=NETWORK,
    offer=OFFER,
    min_vault_grace_s=3_600,
    exposure=9_999,
    now_ms=NOW_MS,
)
STATE = VaultState(
    address=Pubkey.from_string(VAULT),
    kind=0,
    grace_s=3_600,
    depositor=Pubkey.from_string(DEPOSITOR),
    config=Pubkey.from_string(CONFIG),
    mint=NETWORK.mint_pubkey,
    token_account=token_account_of(Pubkey.from_string(VAULT), NETWORK.mint_pubkey),
    signer=SESSION.pubkey(),
    next_signer=Pubkey.default(),
    chain_id=NETWORK.chain_id,
    roots=bytes(32),
    salt=1,
    settled=100,
    close_at=0,
    next_signer_at=0,
    captures=0,
    balance=1_400,
)


def cap(*, signer: Keypair = SESSION, **changes: Any) -> SignedCap:
    amount, until = changes.get("cap", 1_500), changes.get("valid_until_s", NOW_MS // 1000 + 7_200)
    message = CapMessage(NETWORK.chain_id, bytes(Pubkey.from_string(VAULT)), amount, until)
    signature = str(sign_message(signer, message))
    return SignedCap(
        vault=changes.get("vault", VaultAddress(VAULT)),
        cap=amount,
        valid_until_s=until,
        signer=str(signer.pubkey()),
        signature=changes.get("signature", signature),
    )


def commitment(**changes: Any) -> Commitment:
    values = {
        "vault": VAULT,
        "sequence": 1,
        "lease_id": "lease_1",
        "payout_address": PAYOUT,
        "committed_before": 500,
        "committed_after": 1_500,
    }
    return Commitment.model_validate(values | changes)


def grant(*, signed_by: Keypair = OPERATOR, committed_by: Keypair = OPERATOR, **changes: Any) -> SignedGrant:
    promise = changes.pop("commitment", commitment())
    values = {
        "lease_id": LeaseId("lease_1"),
        "fence": 1,
        "job_id": JobId("job_1"),
        "attempt": 1,
        "client": AccountId(DEPOSITOR),
        "node": NodeId(NODE),
        "marketplace": str(OPERATOR.pubkey()),
        "spec": load_job_spec({"version": 1, "command": ["true"]}),
        "price_per_gpu_hour": 1_000,
        "billable_gpus": 1,
        "max_amount": 1_000,
        "max_duration_ms": 3_600_000,
        "usage_interval_ms": 600_000,
        "granted_at_ms": NOW_MS,
        "accept_within_ms": 10_000,
        "cap": cap(),
    }
    made = Grant(
        **(values | changes),  # type: ignore[arg-type]  # of many types
        commitment=promise,
        commitment_signature=promise.sign(committed_by),
    )
    return SignedGrant(grant=made, signature=made.sign(signed_by))


def test_a_grant_that_holds_is_taken() -> None:
    assert why_not(grant(), FACTS) is None
    assert why_not_vault(grant().grant, STATE, FACTS) is None


def share(fraction: str) -> JobSpec:
    resources = {"gpus": 1, "gpu_fraction": fraction}
    return load_job_spec({"version": 1, "command": ["true"], "resources": resources})


def test_a_share_is_paid_its_part_of_the_offers_price() -> None:
    sharing = replace(FACTS, offer=OFFER.model_copy(update={"gpu_slices": 2}))
    half = grant(spec=share("0.5"), price_per_gpu_hour=500)
    too_little = grant(spec=share("0.5"), price_per_gpu_hour=499)

    assert why_not(half, sharing) is None
    assert (refusal := why_not(too_little, sharing)) is not None
    assert refusal.code == "grant_price_too_low"
    assert (refusal := why_not(half, FACTS)) is not None
    assert refusal.code == "gpu_fraction_not_offered"


WRONG_GRANTS: dict[str, Callable[[], SignedGrant]] = {
    "grant_wrong_marketplace": lambda: grant(marketplace=str(STRANGER.pubkey())),
    "grant_signature_invalid": lambda: grant(signed_by=STRANGER),
    "grant_wrong_node": lambda: grant(node=NodeId(str(STRANGER.pubkey()))),
    "grant_wrong_time": lambda: grant(granted_at_ms=NOW_MS - 300_001),
    "grant_price_too_low": lambda: grant(price_per_gpu_hour=999),
    "grant_wrong_gpus": lambda: grant(billable_gpus=2),
    "gpu_fraction_not_offered": lambda: grant(spec=share("0.4")),
    "commitment_signature_invalid": lambda: grant(committed_by=STRANGER),
    "commitment_wrong_lease": lambda: grant(commitment=commitment(lease_id="lease_2")),
    "commitment_wrong_payee": lambda: grant(commitment=commitment(payout_address=str(STRANGER.pubkey()))),
    "commitment_too_small": lambda: grant(commitment=commitment(committed_after=1_499)),
    "commitment_wrong_vault": lambda: grant(commitment=commitment(vault=str(STRANGER.pubkey()))),
    "cap_too_low": lambda: grant(cap=cap(cap=1_499)),
    "cap_signature_invalid": lambda: grant(cap=cap(signature=cap(cap=1_600).signature)),
    "cap_expires_too_soon": lambda: grant(cap=cap(valid_until_s=NOW_MS // 1000 + 3_599)),
    "vault_address_invalid": lambda: grant(cap=cap(vault="0"), commitment=commitment(vault="0")),
}


@pytest.mark.parametrize("code", WRONG_GRANTS)
def test_what_is_wrong_with_a_grant(code: str) -> None:
    refusal = why_not(WRONG_GRANTS[code](), FACTS)
    assert refusal is not None
    assert refusal.code == code


def test_a_node_that_is_owed_its_limit_takes_no_more() -> None:
    refusal = why_not(grant(), replace(FACTS, exposure=10_000))
    assert refusal is not None
    assert refusal.code == "exposure_limit"


WRONG_VAULTS: dict[str, VaultState | None] = {
    "vault_unknown": None,
    "vault_wrong_operator": replace(STATE, config=STRANGER.pubkey()),
    "vault_wrong_mint": replace(STATE, mint=STRANGER.pubkey()),
    "vault_wrong_chain": replace(STATE, chain_id=bytes(32)),
    "vault_kind": replace(STATE, kind=1),
    "vault_closing": replace(STATE, close_at=1),
    "vault_grace_too_short": replace(STATE, grace_s=3_599),
    "cap_wrong_signer": replace(STATE, next_signer=STRANGER.pubkey(), next_signer_at=NOW_MS // 1000),
    "vault_underfunded": replace(STATE, balance=1_399),
}


@pytest.mark.parametrize("code", WRONG_VAULTS)
def test_what_is_wrong_with_a_vault(code: str) -> None:
    refusal = why_not_vault(grant().grant, WRONG_VAULTS[code], FACTS)
    assert refusal is not None
    assert refusal.code == code


def test_two_promises_of_one_range_are_a_proof_that_a_third_party_checks(tmp_path: Path) -> None:
    second = commitment(lease_id="lease_2", sequence=2, committed_before=1_499, committed_after=2_499)
    proof = overlap_with(grant(lease_id=LeaseId("lease_2"), commitment=second), [grant()])
    assert proof is not None
    file = publish(proof, tmp_path / "proofs")

    checked = CliRunner().invoke(cli, ["--home", str(tmp_path), "audit", "--proof", str(file), "--json"])
    assert (checked.exit_code, json.loads(checked.stdout)["proves"]) == (0, True)

    forged = json.loads(file.read_text())
    forged["second"]["commitment"]["committed_before"] = 0
    file.write_text(json.dumps(forged))
    checked = CliRunner().invoke(cli, ["--home", str(tmp_path), "audit", "--proof", str(file), "--json"])
    assert checked.exit_code == 1
    assert json.loads(checked.stdout)["problems"] == ["not both commitments are signed by the operator"]


def test_promises_that_touch_or_are_of_two_vaults_prove_nothing() -> None:
    touching = commitment(lease_id="lease_2", sequence=2, committed_before=1_500, committed_after=2_500)
    elsewhere = commitment(lease_id="lease_2", sequence=2, vault=str(STRANGER.pubkey()))
    for second in (touching, elsewhere):
        assert overlap_with(grant(lease_id=LeaseId("lease_2"), commitment=second), [grant()]) is None
