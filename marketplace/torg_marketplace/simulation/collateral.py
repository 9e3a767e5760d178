"""Collaterals on a simulated chain: the three steps of a slash, decoded from the very transactions that are sent, and the promises of the
program about them. What the real program refuses is tested against the real program."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace

from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction

from torg_chain.errors import TransactionRejected
from torg_chain.network import Network
from torg_chain.vault import DISPUTE_DELAY_S, SLASH_MARGIN_S, ProposedSlash, VaultKind, VaultState, chained

_PROPOSE, _EXECUTE, _CANCEL = 9, 10, 11


@dataclass
class SimulatedCollaterals:
    """`vaults` are all of the chain, clients' too. `executed`: (collateral, evidence root, amount, beneficiary's wallet) of each slash."""

    vaults: dict[str, VaultState]
    executed: list[tuple[str, bytes, int, Pubkey]] = field(default_factory=list)

    def take(self, transaction: VersionedTransaction, program_id: Pubkey, now_s: int) -> bool:
        """Whether the transaction is a step of a slash, which has happened then. Raises TransactionRejected."""
        keys = list(transaction.message.account_keys)
        for item in transaction.message.instructions:
            data, accounts = bytes(item.data), [keys[index] for index in item.accounts]
            if keys[item.program_id_index] == program_id and data[0] in {_PROPOSE, _EXECUTE, _CANCEL}:
                self._step(data, accounts, now_s)
                return True
        return False

    def _step(self, data: bytes, accounts: list[Pubkey], now_s: int) -> None:
        address = str(accounts[0])
        state = self.vaults[address]
        match data[0]:
            case kind if kind == _PROPOSE:
                (amount,) = struct.unpack_from("<Q", data, 1)
                client = self.vaults[str(accounts[4])]
                if state.slash is not None:
                    raise TransactionRejected("slash refused", error_name="E_STATE")
                if amount > state.balance or amount == 0:
                    raise TransactionRejected("slash refused", error_name="E_OVER_BALANCE")
                due = now_s + DISPUTE_DELAY_S
                if state.close_at and due + SLASH_MARGIN_S > state.close_at:
                    raise TransactionRejected("slash refused", error_name="E_TOO_LATE")
                slash = ProposedSlash(amount, due, data[9:41], client.depositor)
                self.vaults[address] = replace(state, slash=slash)
            case kind if kind == _CANCEL:
                if state.slash is None:
                    raise TransactionRejected("slash refused", error_name="E_STATE")
                self.vaults[address] = replace(state, slash=None)
            case _:
                self._execute(address, state, now_s)

    def _execute(self, address: str, state: VaultState, now_s: int) -> None:
        slash = state.slash
        if slash is None:
            raise TransactionRejected("slash refused", error_name="E_STATE")
        if not slash.execute_at <= now_s <= slash.execute_at + DISPUTE_DELAY_S:
            name = "E_TOO_EARLY" if now_s < slash.execute_at else "E_TOO_LATE"
            raise TransactionRejected("slash refused", error_name=name)
        self.executed.append((address, slash.evidence_root, slash.amount, slash.beneficiary))
        self.vaults[address] = replace(
            state,
            slash=None,
            settled=state.settled + slash.amount,
            balance=state.balance - slash.amount,
            roots=chained(state.roots, slash.evidence_root),
        )


def stake(vaults: dict[str, VaultState], network: Network, node: Pubkey, owner: Pubkey, amount: int) -> str:
    """A collateral whose session key is the node; returns its address."""
    from torg_marketplace.simulation.chain import fresh_vault  # which imports this module

    opened = fresh_vault(
        network, depositor=owner, signer=node, balance=amount, salt=5_000 + len(vaults), grace_s=7 * 86_400
    )
    vaults[str(opened.address)] = replace(opened, kind=int(VaultKind.COLLATERAL))
    return str(opened.address)
