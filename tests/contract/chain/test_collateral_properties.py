"""Whatever an operator and a node do with a stake, in any order: what is taken goes to the proposed client and to nobody else, a day
after it was proposed at the earliest, and the node gets the rest once its grace is over.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from solders.instruction import Instruction
from solders.keypair import Keypair

from tests.support.collateral import STAKE, cancellation, execution, home, open_stake, proposal
from tests.support.svm import HOUR_S, Refused, Vault, World, with_accounts
from torg_chain import instructions as program
from torg_chain.errors import PROGRAM_ERRORS
from torg_chain.vault import (
    DISPUTE_DELAY_S,
    MINIMUM_COLLATERAL_GRACE_S,
    SALT_WINDOW_SLOTS,
    SLASH_MARGIN_S,
    token_account_of,
)


@dataclass(frozen=True)
class Proposed:
    amount: int
    at_s: int
    client: Vault


class CollateralMachine(RuleBasedStateMachine):
    """One stake, two clients, an operator that also opens vaults with its own keys."""

    @initialize()
    def begin(self) -> None:
        self.world = World()
        self.operator = self.world.operator
        self.clients = [self.world.open_vault() for _ in range(2)]
        self.world.svm.airdrop(self.operator.fee_owner.pubkey(), 10**10)
        own_keys = [self.operator.admin, self.operator.capture_key, self.operator.fee_owner]
        self.own_vaults = [self.world.open_vault(depositor=key) for key in own_keys]
        for vault in [*self.clients, *self.own_vaults]:
            self.world.token_account(vault.depositor.pubkey())
        self.returned = self.deposited = self.slashed = 0
        self._stake()

    def _stake(self) -> None:
        self.stake = open_stake(self.world)
        self.deposited += STAKE
        self.proposed: Proposed | None = None
        self.closing_since: int | None = None

    def _try(self, instruction: Instruction, signer: Keypair) -> bool:
        try:
            self.world.send([instruction], [signer])
        except Refused as refused:
            event(f"refused: {refused.name}")
            if refused.name not in PROGRAM_ERRORS.values():
                raise
            return False
        return True

    @property
    def _close_at(self) -> int | None:
        return None if self.closing_since is None else self.closing_since + MINIMUM_COLLATERAL_GRACE_S

    # --- the operator -----------------------------------------------------------------------------------------------

    @rule(amount=st.sampled_from([1, 1_000, STAKE // 2, STAKE, STAKE + 1, 0, 2**64 - 1]), client=st.integers(0, 1))
    def propose(self, amount: int, client: int) -> None:
        victim = self.clients[client]
        done = self._try(proposal(self.world, self.stake, victim.address, amount), self.operator.admin)
        in_time = self._close_at is None or self.world.now_s + DISPUTE_DELAY_S + SLASH_MARGIN_S <= self._close_at
        affordable = 0 < amount <= self.world.balance(self.stake.tokens)
        assert done == (self.proposed is None and in_time and affordable)
        if done:
            self.proposed = Proposed(amount, self.world.now_s, victim)

    @rule(own=st.integers(0, 2))
    def propose_for_itself(self, own: int) -> None:
        assert not self._try(proposal(self.world, self.stake, self.own_vaults[own].address, 1), self.operator.admin)

    @rule(to=st.sampled_from(["client", "client", "client", "other client", "admin", "capture key", "fee owner"]))
    def execute(self, to: str) -> None:
        wanted = self.proposed.client if self.proposed else self.clients[0]
        other = next(client for client in self.clients if client is not wanted)
        to_vault = {"client": wanted, "other client": other}
        to_vault |= dict(zip(["admin", "capture key", "fee owner"], self.own_vaults, strict=True))
        account = home(to_vault[to])
        before = self.world.balance(account)
        done = self._try(execution(self.world, self.stake, wanted.depositor.pubkey(), account), self.operator.admin)
        waited = self.world.now_s - self.proposed.at_s if self.proposed else -1
        in_window = DISPUTE_DELAY_S <= waited <= 2 * DISPUTE_DELAY_S
        covered = self.proposed is not None and self.proposed.amount <= self.world.balance(self.stake.tokens) + (
            self.proposed.amount if done else 0
        )
        assert done == (in_window and covered and to == "client")
        if done and self.proposed:
            event("slashed")
            assert self.world.balance(account) == before + self.proposed.amount
            self.slashed += self.proposed.amount
            self.proposed = None

    @rule(amount=st.integers(1, 2_000))
    def an_honest_slash(self, amount: int) -> None:
        """Both steps in time; what happened before decides whether they are taken, as the model of each says."""
        self.propose(amount, 0)
        self.world.wait(DISPUTE_DELAY_S)
        self.execute("client")

    @rule()
    def withdraw_the_proposal(self) -> None:
        assert self._try(cancellation(self.world, self.stake), self.operator.admin) == (self.proposed is not None)
        self.proposed = None

    @rule(data=st.data())
    def try_to_capture(self, data: st.DataObject) -> None:
        """With the node's own cap and the operator's order: a collateral is not captured."""
        payees = [(home(data.draw(st.sampled_from([*self.clients, *self.own_vaults]))), 1)]
        order = self.world.order(self.stake, payees)
        before = [self.world.cap(self.stake, STAKE), order]
        built = self.world.capturing(self.stake, payees, before=before, order_index=1)
        try:
            self.world.send(built, [self.world.bank])
        except Refused as refused:
            assert refused.name == "E_KIND"  # noqa: PT017 - the machine's own refusal, not pytest's
        else:
            raise AssertionError("a collateral was captured")

    # --- the node, and time -----------------------------------------------------------------------------------------

    @rule(cancel=st.booleans())
    def start_or_cancel_the_close(self, cancel: bool) -> None:
        build = program.cancel_close if cancel else program.start_close
        node = self.stake.depositor
        done = self._try(build(self.world.program_id, self.stake.address, node.pubkey()), node)
        assert done == (cancel == (self.closing_since is not None))
        if done:
            self.closing_since = None if cancel else self.world.now_s

    @rule(thief=st.booleans())
    def leave(self, thief: bool) -> None:
        node = self.stake.depositor
        mine = self.world.token_account(node.pubkey())
        closing = program.finish_close(
            self.world.program_id, vault=self.stake.address, depositor=node.pubkey(), mint=self.stake.mint
        )
        rest = self.world.balance(self.stake.tokens)
        if thief:
            bank = self.world.bank
            theirs = self.world.token_account(bank.pubkey())
            assert not self._try(with_accounts(closing, {1: bank.pubkey(), 3: theirs}), bank)
            return
        due = self._close_at is not None and self.world.now_s >= self._close_at
        due = due and self.world.slot > self.stake.salt + SALT_WINDOW_SLOTS
        assert self._try(closing, node) == due, "the node gets the rest after its grace, not before"
        if due:
            event("left")
            assert self.world.balance(mine) == rest
            self.returned += rest
            self._stake()

    @rule()
    def an_honest_leave(self) -> None:
        if self.closing_since is None:
            self.start_or_cancel_the_close(cancel=False)
        self.world.wait(MINIMUM_COLLATERAL_GRACE_S, SALT_WINDOW_SLOTS + 1)
        self.leave(thief=False)
        assert self.closing_since is None, "a node that waited for its grace is out"

    @rule(seconds=st.sampled_from([DISPUTE_DELAY_S, SLASH_MARGIN_S, HOUR_S // 2, 1, DISPUTE_DELAY_S - 1]))
    def time_passes(self, seconds: int) -> None:
        self.world.wait(seconds, SALT_WINDOW_SLOTS + 1)

    # --- what must hold ---------------------------------------------------------------------------------------------

    @invariant()
    def every_unit_is_accounted_for(self) -> None:
        assert self.deposited == self.slashed + self.returned + self.world.balance(self.stake.tokens)
        assert sum(self.world.balance(home(client)) for client in self.clients) == self.slashed

    @invariant()
    def the_operator_got_nothing(self) -> None:
        assert [self.world.balance(home(vault)) for vault in self.own_vaults] == [0, 0, 0]
        assert self.world.balance(token_account_of(self.world.bank.pubkey(), self.world.mint)) == 0


TestCollateralMachine = CollateralMachine.TestCase
TestCollateralMachine.settings = settings(
    max_examples=int(os.environ.get("VAULT_EXAMPLES", "40")),
    stateful_step_count=50,
    deadline=None,
    derandomize=os.environ.get("CI") == "true",
    suppress_health_check=list(HealthCheck),
)
