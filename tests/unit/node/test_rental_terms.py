"""Direct rental, what needs no chain and no container: terms, the book, the end, and the closing that both sign."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from solders.hash import Hash
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from torg_chain.agreed_closing import agree, assemble, closing_message
from torg_chain.errors import TransactionRejected
from torg_chain.network import LOCALNET_MINT, LOCALNET_PROGRAM_ID, Network
from torg_node.cache import names_in_use
from torg_node.executors.port import Exit, ExitReason
from torg_node.rental.api import Nonces
from torg_node.rental.book import RentalBook
from torg_node.rental.container import why_ended
from torg_node.rental.terms import check_spec, check_terms
from torg_protocol.caps import SignedCap
from torg_protocol.errors import Conflict, Invalid
from torg_protocol.ids import new_id
from torg_protocol.jobspec import load_job_spec
from torg_protocol.rentals import RentalEnd, RentalOffer, RentalState, RentalTerms

NOW_MS = 1_800_000_000_000
PRICE, INTERVAL_MS = 3_600_000, 60_000
NODE, CLIENT, VAULT = (str(Keypair().pubkey()) for _ in range(3))


def terms(number: int = 1, **changes: Any) -> RentalTerms:
    values: dict[str, Any] = {
        "rental_id": new_id("rent", NOW_MS, number),
        "node": NODE,
        "client": CLIENT,
        "vault": VAULT,
        "spec": load_job_spec({"version": 1, "command": ["true"]}),
        "price_per_gpu_hour": PRICE,
        "interval_ms": INTERVAL_MS,
        "max_amount": PRICE,
        "agreed_at_ms": NOW_MS,
    }
    return RentalTerms.model_validate({**values, **changes})


def offer() -> RentalOffer:
    return RentalOffer(
        node=NODE,  # type: ignore[arg-type]
        genesis_hash=str(Hash.default()),
        program_id=LOCALNET_PROGRAM_ID,
        mint=LOCALNET_MINT,
        decimals=6,
        price_per_gpu_hour=PRICE,
        interval_ms=INTERVAL_MS,
        min_grace_s=3_600,
        isolation=("sandbox",),
        executor="sandbox",
        gpu_class="cpu",
        gpus=0,
        slots=1,
        issued_at_ms=NOW_MS,
    )


def cap(amount: int = PRICE // 60) -> SignedCap:
    return SignedCap(vault=VAULT, cap=amount, valid_until_s=NOW_MS // 1000, signer=CLIENT, signature="")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "first_cap", "code"),
    [
        ({"node": CLIENT}, PRICE // 60, "wrong_node"),
        ({"price_per_gpu_hour": PRICE - 1}, PRICE // 60, "price_too_low"),
        ({"interval_ms": INTERVAL_MS + 1}, PRICE // 60, "interval_too_long"),
        ({"agreed_at_ms": NOW_MS - 300_001}, PRICE // 60, "terms_stale"),
        ({}, PRICE // 60 - 1, "cap_too_low"),
    ],
)
def test_terms_that_do_not_fit_the_offer_are_refused(changes: dict[str, Any], first_cap: int, code: str) -> None:
    check_terms(terms(), cap(), offer(), NOW_MS)
    with pytest.raises(Conflict) as caught:
        check_terms(terms(**changes), cap(first_cap), offer(), NOW_MS)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("network", "open"),
        ("isolation", "gvisor"),
        ("root", True),
        ("resources", {"gpus": 1, "gpu_fraction": "0.5"}),
        ("ports", [{"port": 8000, "name": "web"}]),
        ("verify", {"policy": "metric", "catalogue": "cnn", "metric": "accuracy", "target": "0.9"}),
    ],
)
def test_what_a_rental_does_not_give_is_said_by_field(field: str, value: object) -> None:
    spec = load_job_spec({"version": 1, "command": ["true"], field: value})
    with pytest.raises(Invalid) as caught:
        check_spec(spec, ("sandbox",), own_root=False)
    assert caught.value.code == "rental_unsupported"
    assert (caught.value.field or "").partition(".")[0] == field


def test_one_vault_serves_one_rental_and_the_book_survives_a_restart(tmp_path: Path) -> None:
    book = RentalBook(tmp_path / "journal.sqlite")
    book.add(terms(), "signature", cap())
    with pytest.raises(Conflict) as caught:
        book.add(terms(2), "signature", cap())
    assert caught.value.code == "vault_rented"
    book.raise_cap(terms().rental_id, cap(PRICE))
    book.ended(
        terms().rental_id, end=RentalEnd.OOM, useful_ms=5, exit_code=137, detail="memory", outputs=None, now_ms=NOW_MS
    )
    book.agreed_to_close(VAULT)
    book.close()

    book = RentalBook(tmp_path / "journal.sqlite")
    entry = book.by_vault(VAULT)
    assert entry is not None
    assert (entry.terms, entry.state, entry.end, entry.cap.cap) == (terms(), RentalState.ENDED, RentalEnd.OOM, PRICE)
    assert book.live() == []
    assert book.unclosed() == [entry]
    assert book.has_agreed_to_close(VAULT)
    book.close()


def test_what_a_live_rental_runs_stays_in_the_cache_until_it_ends(tmp_path: Path) -> None:
    journal = tmp_path / "journal.sqlite"
    spec = load_job_spec({"version": 1, "image": "registry.example/train:1", "command": ["true"]})
    book = RentalBook(journal)
    book.add(terms(spec=spec), "signature", cap())
    assert names_in_use(journal) == {"registry.example/train:1"}
    book.ended(
        terms().rental_id, end=RentalEnd.COMPLETED, useful_ms=5, exit_code=0, detail="", outputs=None, now_ms=NOW_MS
    )
    assert names_in_use(journal) == frozenset()
    book.close()


def test_the_first_reason_to_stop_counts_unless_it_ended_well_by_itself() -> None:
    def exited(reason: ExitReason, code: int | None) -> Exit:
        return Exit(reason, code, 0, 1)

    assert why_ended(exited(ExitReason.STOPPED, None), RentalEnd.NO_CAP) is RentalEnd.NO_CAP
    assert why_ended(exited(ExitReason.EXITED, 143), RentalEnd.STOPPED) is RentalEnd.STOPPED
    assert why_ended(exited(ExitReason.EXITED, 0), RentalEnd.STOPPED) is RentalEnd.COMPLETED
    assert why_ended(exited(ExitReason.EXITED, 1), None) is RentalEnd.FAILED_EXIT
    assert why_ended(exited(ExitReason.OOM, None), RentalEnd.STOPPED) is RentalEnd.OOM


def test_a_request_is_good_once() -> None:
    nonces = Nonces()
    assert nonces.is_fresh(CLIENT, "one", 0)
    assert not nonces.is_fresh(CLIENT, "one", 1)
    assert nonces.is_fresh(NODE, "one", 1)


def test_an_agreement_to_close_holds_for_exactly_the_transaction_that_both_built() -> None:
    depositor, admin, vault = Keypair(), Keypair(), Keypair().pubkey()
    network = Network(
        rpc_url="http://127.0.0.1:1",
        genesis_hash=str(Hash.default()),
        program_id=LOCALNET_PROGRAM_ID,
        mint=LOCALNET_MINT,
        decimals=6,
        operator_config=str(Keypair().pubkey()),
    )

    def message(of: Pubkey, blockhash: Hash) -> Any:
        return closing_message(
            network, vault=of, depositor=depositor.pubkey(), admin=admin.pubkey(), blockhash=blockhash
        )

    ours = message(vault, Hash.default())
    both: dict[str, Any] = {"depositor": depositor, "admin": admin.pubkey(), "last_valid_block_height": 1}
    assert assemble(ours, agreement=agree(ours, admin), **both).raw
    for agreement in (
        agree(message(Keypair().pubkey(), Hash.default()), admin),  # of another vault
        agree(message(vault, Hash.new_unique()), admin),  # of another moment
        agree(ours, Keypair()),  # by somebody else
        "not a signature",
    ):
        with pytest.raises(TransactionRejected):
            assemble(ours, agreement=agreement, **both)
