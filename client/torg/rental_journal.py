"""The rentals of this computer, in the client's journal: where the money is, which terms were signed, how high the newest cap is."""

from __future__ import annotations

from dataclasses import dataclass

from torg.journal import Journal
from torg_chain.network import Network
from torg_protocol.errors import NotFound
from torg_protocol.rentals import RentalTerms

OPENING, OPEN, CLOSED = "opening", "open", "closed"


@dataclass(frozen=True, slots=True)
class RentalRow:
    """Base units. `terms` None: the vault was opened (perhaps: state "opening"), and the node was not asked yet. `cap`: the highest
    that was ever signed. `paid`: known once it is closed."""

    rental_id: str
    node: str
    url: str
    network: Network
    vault: str
    salt: int
    deposit: int
    terms: RentalTerms | None
    cap: int
    state: str
    opened_at_ms: int
    paid: int | None


class RentalJournal(Journal):
    """Each row is there before money moves; every method is one transaction."""

    def add_rental(self, row: RentalRow) -> None:
        with self._transaction() as db:
            db.execute(
                "INSERT INTO rentals (rental_id, node, url, network_json, vault, salt, deposit, state, opened_at_ms)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    row.rental_id,
                    row.node,
                    row.url,
                    row.network.model_dump_json(),
                    row.vault,
                    row.salt,
                    row.deposit,
                    row.state,
                    row.opened_at_ms,
                ),
            )

    def rental_opened(self, rental_id: str) -> None:
        self._set(rental_id, "state = ?", OPEN)

    def rental_agreed(self, rental_id: str, terms: RentalTerms) -> None:
        """Before the node is asked."""
        self._set(rental_id, "terms_json = ?", terms.model_dump_json())

    def rental_cap(self, rental_id: str, cap: int) -> None:
        """Before it is sent."""
        self._set(rental_id, "cap = MAX(cap, ?)", cap)

    def rental_closed(self, rental_id: str, paid: int | None) -> None:
        self._set(rental_id, "paid = ?, state = 'closed'", paid)

    def rental_paid(self, rental_id: str, paid: int) -> None:
        """All that the node will ever have got; written down before the closing is sent."""
        self._set(rental_id, "paid = ?", paid)

    def rental_never_opened(self, rental_id: str) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM rentals WHERE rental_id = ? AND state = ?", (rental_id, OPENING))

    def rentals(self) -> list[RentalRow]:
        """Newest first."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT rental_id, node, url, network_json, vault, salt, deposit, terms_json, cap, state, opened_at_ms, paid"
                " FROM rentals ORDER BY opened_at_ms DESC, rowid DESC"
            ).fetchall()
        return [
            RentalRow(
                rental_id,
                node,
                url,
                Network.model_validate_json(network),
                vault,
                salt,
                deposit,
                RentalTerms.model_validate_json(terms) if terms else None,
                cap,
                state,
                opened_at_ms,
                paid,
            )
            for rental_id, node, url, network, vault, salt, deposit, terms, cap, state, opened_at_ms, paid in rows
        ]

    def rental(self, rental_id: str) -> RentalRow:
        """`last` is the newest. Raises NotFound `rental_unknown`."""
        for row in self.rentals():
            if rental_id in {row.rental_id, "last"}:
                return row
        raise NotFound(
            "this computer knows no such rental",
            code="rental_unknown",
            field="rental",
            value=rental_id,
            hint="torg rentals list",
        )

    def remember_node(self, node: str, url: str) -> None:
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO nodes VALUES (?, ?)", (node, url))

    def node_url(self, node: str) -> str | None:
        with self._transaction() as db:
            row = db.execute("SELECT url FROM nodes WHERE node = ?", (node,)).fetchone()
        return None if row is None else str(row[0])

    def _set(self, rental_id: str, assignment: str, value: object) -> None:
        with self._transaction() as db:
            db.execute(f"UPDATE rentals SET {assignment} WHERE rental_id = ?", (value, rental_id))  # noqa: S608 - constant clauses
