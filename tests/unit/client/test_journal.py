"""The client's books: whatever happens, and in whatever order, the cap is what the user agreed to and no more."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import sqlite3
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from torg.journal import Journal, VaultEntry
from torg.journal_schema import migrate
from torg_protocol.errors import Conflict, Invalid, NotFound, TorgError

VAULT, OTHER = VaultEntry("vault-1", "market", 1, 3600, "signer"), VaultEntry("vault-2", "market", 2, 3600, "signer")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path / "home" / "journal.db")
    journal.add_vault(VAULT, 1)
    return journal


def reserve(journal: Journal, key: str, amount: int, vault: VaultEntry = VAULT, **more: int) -> int:
    return journal.reserve(
        vault=vault.address, idempotency_key=key, name="job", max_amount=amount, now_ms=1, spec_digest="d", **more
    )


class Books(RuleBasedStateMachine):
    """Random lives of jobs, with receipts that may lie. The model: what the user agreed to, per job."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.journal = Journal(Path(self.folder.name) / "journal.db")
        self.journal.add_vault(VAULT, 1)
        self.agreed: dict[str, int] = {}
        self.receipted: dict[str, dict[str, int]] = {}
        self.closed: set[str] = set()
        self.number = 0

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule(amount=st.integers(0, 2**53))
    def submits(self, amount: int) -> None:
        self.number += 1
        key = f"key{self.number}"
        cap = reserve(self.journal, key, amount)
        self.agreed[key] = amount
        assert cap == self.expected()

    @precondition(lambda self: self.agreed)
    @rule(data=st.data())
    def is_accepted(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.agreed)))
        self.journal.submitted(key, f"job-{key}", data.draw(st.integers(self.agreed[key], 2**60)))
        self.receipted.setdefault(key, {})

    @precondition(lambda self: self.agreed.keys() - self.receipted.keys())
    @rule(data=st.data())
    def is_refused(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.agreed.keys() - self.receipted.keys())))
        self.journal.refused(key)
        del self.agreed[key]

    @precondition(lambda self: self.receipted.keys() - self.closed)
    @rule(data=st.data(), amount=st.integers(0, 2**53))
    def is_receipted(self, data: st.DataObject, amount: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.receipted.keys() - self.closed)))
        lease = f"lease-{key}-{len(self.receipted[key])}"
        self.journal.add_receipt(lease_id=lease, job_id=f"job-{key}", amount=amount, body="{}")
        self.receipted[key][lease] = amount

    @precondition(lambda self: self.receipted)
    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.receipted)))
        self.journal.ended(f"job-{key}")
        self.closed.add(key)

    def expected(self) -> int:
        return sum(
            min(most, sum(self.receipted[key].values())) if key in self.closed else most
            for key, most in self.agreed.items()
        )

    @invariant()
    def the_cap_is_receipts_and_open_maxima_and_never_above_what_was_agreed(self) -> None:
        cap = self.journal.cap(VAULT.address)
        assert cap == self.expected()
        assert cap <= sum(self.agreed.values())


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


@pytest.mark.parametrize(("held", "counts"), [(999, 999), (1000, 1000), (10**12, 1000)])
def test_what_the_marketplace_holds_may_lower_the_maximum_and_never_raise_it(
    journal: Journal, held: int, counts: int
) -> None:
    reserve(journal, "k", 1000)
    journal.submitted("k", "job_1", held)

    assert journal.cap(VAULT.address) == counts


def test_reserving_again_under_the_same_key_counts_once_with_the_larger_maximum(journal: Journal) -> None:
    assert reserve(journal, "k", 100) == 100
    assert reserve(journal, "k", 70) == 100
    assert reserve(journal, "k", 130) == 130

    journal.submitted("k", "job_1")
    assert reserve(journal, "k", 500) == 130  # it is a job now: its maximum was agreed to


def test_vaults_have_books_of_their_own(journal: Journal) -> None:
    journal.add_vault(OTHER, 2)
    reserve(journal, "a", 10)

    assert reserve(journal, "b", 5, OTHER) == 5
    assert journal.cap(VAULT.address) == 10


def test_two_receipts_of_one_lease_that_differ_are_a_contradiction_that_is_kept(journal: Journal) -> None:
    journal.add_receipt(lease_id="l", job_id="j", amount=5, body="first")
    journal.add_receipt(lease_id="l", job_id="j", amount=5, body="first, with the node's signature")

    with pytest.raises(Conflict) as refused:
        journal.add_receipt(lease_id="l", job_id="j", amount=6, body="second")

    assert (refused.value.code, refused.value.value) == ("receipt_contradiction", "l")
    assert [(item.amount, item.body) for item in journal.receipts("j")] == [(5, "first, with the node's signature")]


def test_one_job_is_never_counted_under_two_keys(journal: Journal) -> None:
    reserve(journal, "a", 10)
    reserve(journal, "b", 10)
    journal.submitted("a", "job_1")
    journal.submitted("b", "job_1")

    assert [entry.job_id for entry in journal.jobs(VAULT.address)] == ["job_1", None]


def test_the_newest_vault_is_the_default_and_one_that_is_only_opening_is_none(journal: Journal) -> None:
    journal.add_vault(OTHER, 2, opening=True)
    assert journal.vault("market").address == VAULT.address
    assert [entry.address for entry in journal.opening_vaults("market")] == [OTHER.address]

    journal.vault_opened(OTHER.address)
    assert journal.vault("market").address == OTHER.address

    journal.close_vault(OTHER.address)
    assert journal.vault("market").address == VAULT.address


def test_a_vault_that_never_opened_is_forgotten_and_an_open_one_is_not(journal: Journal) -> None:
    journal.add_vault(OTHER, 2, opening=True)
    for entry in (VAULT, OTHER):
        journal.vault_never_opened(entry.address)

    assert [entry.address for entry in journal.vaults("market")] == [VAULT.address]


@pytest.mark.parametrize(
    ("marketplace", "address", "code", "hint"),
    [("other", None, "no_vault", "torg vault open"), ("market", "nope", "vault_unknown", "vault-1")],
)
def test_an_unknown_vault_is_named_with_the_way_out(
    journal: Journal, marketplace: str, address: str | None, code: str, hint: str
) -> None:
    with pytest.raises(NotFound) as refused:
        journal.vault(marketplace, address)

    assert refused.value.code == code
    assert hint in (refused.value.hint or "")


def _reserve_in_another_process(path: str, worker: int) -> list[int]:
    journal = Journal(Path(path))
    return [reserve(journal, f"{worker}-{number}", 7) for number in range(10)]


def test_many_processes_on_one_file_get_caps_that_only_grow_by_their_own_jobs(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    Journal(path).add_vault(VAULT, 1)
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(3, mp_context=spawn) as pool:
        caps = [cap for found in pool.map(_reserve_in_another_process, [str(path)] * 3, range(3)) for cap in found]

    assert sorted(caps) == [7 * count for count in range(1, 31)]  # every cap covers one job more than the one before


def test_only_the_owner_can_read_the_books(tmp_path: Path) -> None:
    Journal(tmp_path / "home" / "journal.db")

    assert stat.S_IMODE((tmp_path / "home" / "journal.db").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700


def test_a_journal_of_the_first_version_is_brought_up_to_date_and_keeps_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    old = sqlite3.connect(path)
    old.executescript(
        """CREATE TABLE vaults (address TEXT PRIMARY KEY, marketplace TEXT NOT NULL, salt INTEGER NOT NULL, grace_s INTEGER NOT NULL,
        signer TEXT NOT NULL, opened_at_ms INTEGER NOT NULL, closed INTEGER NOT NULL DEFAULT 0);
        CREATE TABLE jobs (idempotency_key TEXT PRIMARY KEY, job_id TEXT UNIQUE, vault TEXT NOT NULL REFERENCES vaults(address),
        name TEXT NOT NULL, max_amount INTEGER NOT NULL, final_amount INTEGER, submitted_at_ms INTEGER NOT NULL);
        CREATE TABLE receipts (lease_id TEXT PRIMARY KEY, job_id TEXT NOT NULL, amount INTEGER NOT NULL, body TEXT NOT NULL);
        INSERT INTO vaults VALUES ('vault-1', 'market', 1, 3600, 'signer', 5, 0);
        INSERT INTO jobs VALUES ('k', 'job_1', 'vault-1', 'n', 42, NULL, 6);"""
    )
    old.close()

    journal = Journal(path)

    assert journal.vault("market") == VAULT
    assert journal.cap("vault-1") == 42
    assert journal.jobs("vault-1")[0].spec_digest is None
    assert Journal(path).cap("vault-1") == 42


def test_a_journal_of_a_newer_torg_is_not_touched(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
    migrate(connection)
    connection.execute("PRAGMA user_version = 99")
    connection.close()

    with pytest.raises(Invalid) as refused:
        Journal(tmp_path / "journal.db")
    assert (refused.value.code, refused.value.value) == ("journal_too_new", 99)


def test_a_file_that_is_no_journal_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(b"this is not a database, but it is long enough to be looked at" * 20)

    with pytest.raises(Invalid) as refused:
        Journal(path)

    assert (refused.value.code, refused.value.value) == ("journal_unreadable", str(path))


@pytest.mark.parametrize(
    ("said", "free_bytes", "code"),
    [
        ("database or disk is full", 1 << 30, "disk_full"),
        ("disk I/O error", 0, "disk_full"),  # what SQLite says where its write-ahead log cannot grow
        ("disk I/O error", 1 << 30, "journal_unreadable"),
    ],
)
def test_a_full_disk_is_no_reason_to_move_the_journal_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, free_bytes: int, code: str
) -> None:
    def refused_write(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError(said)

    journal = Journal(tmp_path / "journal.db")
    monkeypatch.setattr(sqlite3, "connect", refused_write)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free_bytes))
    with pytest.raises(TorgError) as refused:
        journal.receipts()
    assert refused.value.code == code
    assert ("move it away" in (refused.value.hint or "")) == (code == "journal_unreadable")


def test_a_transaction_that_fails_half_way_leaves_nothing(journal: Journal) -> None:
    reserve(journal, "k", 10)

    def delete_and_fail() -> None:
        with journal._transaction() as db:
            db.execute("DELETE FROM jobs")
            raise RuntimeError("the power goes out")

    with pytest.raises(RuntimeError):
        delete_and_fail()

    assert journal.cap(VAULT.address) == 10
