"""Whatever honest and hostile parties do, in any order: the promises about money hold after every step.

The parties here are one depositor, an operator who orders anything that could pay itself, and a thief who submits whatever it has
ever seen. The model below knows only what was deposited and which caps the depositor signed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from solders.instruction import Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from tests.support.svm import HOUR_S, Refused, Vault, World, with_accounts
from torg_chain import instructions as program
from torg_chain.errors import PROGRAM_ERRORS
from torg_chain.vault import SALT_WINDOW_SLOTS, find_vault, token_account_of

START = 10_000
GRACES = st.sampled_from([HOUR_S, 5 * HOUR_S])
AMOUNTS = st.sampled_from([300, 1, 0, 7, 900, 900, 2_000, START, 2**63, 2**64 - 1])


@dataclass(frozen=True)
class Signed:
    """A cap that exists in the world, for anybody to use."""

    cap: int
    valid_until_s: int
    signer: Keypair
    carried: Instruction


@dataclass(frozen=True)
class Ordered:
    expected: int
    payees: list[tuple[Pubkey, int]]
    capture_key: Pubkey
    carried: Instruction


class VaultMachine(RuleBasedStateMachine):
    """One vault at a time; closing it ends the life of that address, and a new one is opened."""

    @initialize(grace_s=GRACES)
    def begin(self, grace_s: int) -> None:
        self.world = World()
        self.depositor = self.world.wallet()
        self.home = self.world.token_account(self.depositor.pubkey())
        self.payees = [self.world.token_account(self.world.key().pubkey()) for _ in range(2)]
        self.closed_payee = self.world.key().pubkey()
        self.operator = self.world.operator
        self.closed: list[Vault] = []
        self.highest_settled, self.seen_vault = 0, Pubkey.default()
        self._open(grace_s, START)

    def _open(self, grace_s: int, deposit: int) -> None:
        self.vault = self.world.open_vault(
            depositor=self.depositor, operator=self.operator, grace_s=grace_s, deposit=deposit
        )
        self.grace_s, self.deposited = grace_s, deposit
        self.paid_before = sum(self._paid())
        self.returned_before = self.world.balance(self.home)
        self.settled = 0
        self.caps: list[Signed] = []
        self.orders: list[Ordered] = []
        self.signers = [self.vault.session]
        self.sign_cap(START, 100 * HOUR_S, old_key=True)
        self.closing_since: int | None = None

    def _paid(self) -> list[int]:
        return [self.world.balance(payee) for payee in self.payees]

    def _try(self, instructions: list[Instruction], signers: list[Keypair]) -> bool:
        """Refusals are fine; but only our own named ones, or the runtime's about a vault that is gone."""
        try:
            self.world.send(instructions, signers)
        except Refused as refused:
            event(f"refused: {refused.name}")
            if refused.name not in PROGRAM_ERRORS.values():
                raise
            return False
        return True

    # --- what parties do --------------------------------------------------------------------------------------------

    @rule(amount=st.integers(1, 5_000))
    def deposit(self, amount: int) -> None:
        self.world.mint_into(self.vault.tokens, amount)
        self.deposited += amount

    @rule(above=AMOUNTS, valid_for_s=st.sampled_from([0, 600, 100 * HOUR_S, 100 * HOUR_S]), old_key=st.booleans())
    def sign_cap(self, above: int, valid_for_s: int, old_key: bool) -> None:
        cap = min(2**64 - 1, self.settled + above)
        signer = self.signers[0 if old_key else -1]
        carried = self.world.cap(self.vault, cap, valid_for_s=valid_for_s, signer=signer)
        self.caps.append(Signed(cap, self.world.now_s + valid_for_s, signer, carried))

    @rule(amount=st.integers(1, 2_000))
    def an_honest_capture(self, amount: int) -> None:
        """A fresh cap by the key that counts, the capture key's own signature: goes through whenever the money is there."""
        covered = amount <= self.world.balance(self.vault.tokens)
        signer = self.world.state(self.vault).signer_at(self.world.now_s)
        key = next(key for key in self.signers if key.pubkey() == signer)
        cap = self.world.cap(self.vault, self.settled + amount, signer=key)
        self.caps.append(Signed(self.settled + amount, self.world.now_s + 600, key, cap))
        vault = replace(self.vault, operator=self.operator)
        built = self.world.capturing(vault, [(self.payees[0], amount)], before=[cap])
        assert self._try(built, [self.operator.capture_key]) == covered
        self.settled += amount * covered

    def _sign_order(self, data: st.DataObject) -> None:
        choices = st.sampled_from([*self.payees, *self.payees, self.closed_payee, self.vault.tokens])
        payees = data.draw(st.lists(st.tuples(choices, AMOUNTS), min_size=1, max_size=3))
        expected = self.settled + data.draw(st.sampled_from([0, 0, 0, 1, 300]))
        key = self.operator.capture_key
        order = self.world.order(self.vault, payees, expected=expected, signer=key)
        self.orders.append(Ordered(expected, payees, key.pubkey(), order))

    @rule(data=st.data(), new_order=st.booleans(), raise_by=st.sampled_from([0, 0, 0, 1]))
    def somebody_captures(self, data: st.DataObject, new_order: bool, raise_by: int) -> None:
        """With any cap and any order ever seen, the newest first; a thief changes an amount, which must not pass."""
        if new_order or not self.orders:
            self._sign_order(data)
        cap = data.draw(st.sampled_from(self.caps[::-1]))
        order = data.draw(st.sampled_from(self.orders[::-1]))
        payees = [(key, min(2**64 - 1, amount + raise_by)) for key, amount in order.payees]
        before, paid = self.settled, sum(self._paid())
        accepted = self._try(
            self.world.capturing(
                self.vault, payees, before=[cap.carried, order.carried], order_index=1, expected=order.expected
            ),
            [self.world.bank],
        )
        moved = sum(self._paid()) - paid
        if accepted:
            event("a capture paid")
            assert payees == order.payees, "other amounts than ordered"
            assert order.expected == before, "an order out of turn"
            assert moved > 0
            assert before + moved <= cap.cap, "more than this cap"
            assert self.world.now_s <= cap.valid_until_s, "an expired cap"
            counts = self.world.state(self.vault).signer_at(self.world.now_s)
            assert cap.signer.pubkey() == counts, "a rotated-out key's cap, or one before its time"
            assert order.capture_key == self.operator.capture_key.pubkey(), "a rotated-out key's order"
        else:
            assert moved == 0
        self.settled += moved

    @rule()
    def operator_rotates_its_key(self) -> None:
        new, admin = self.world.wallet(), self.operator.admin
        change = program.set_capture_key(self.world.program_id, self.operator.config, admin.pubkey(), new.pubkey())
        assert self._try([change], [admin])
        self.operator = self.operator.with_capture_key(new)

    @rule()
    def depositor_rotates_its_key(self) -> None:
        new = self.world.key()
        rotate = program.rotate_signer(self.world.program_id, self.vault.address, self.depositor.pubkey(), new.pubkey())
        assert self._try([rotate], [self.depositor])
        self.signers.append(new)

    @rule(cancel=st.booleans())
    def depositor_starts_or_cancels_the_close(self, cancel: bool) -> None:
        build = program.cancel_close if cancel else program.start_close
        done = self._try([build(self.world.program_id, self.vault.address, self.depositor.pubkey())], [self.depositor])
        assert done == (cancel == (self.closing_since is not None))
        if done:
            self.closing_since = None if cancel else self.world.now_s

    @rule(seconds=st.sampled_from([5 * HOUR_S, 1, 60, HOUR_S]), slots=st.sampled_from([SALT_WINDOW_SLOTS, 1]))
    def time_passes(self, seconds: int, slots: int) -> None:
        self.world.wait(seconds, slots)

    @rule(thief=st.booleans(), agreed=st.sampled_from([False, False, False, True]), grace_s=GRACES)
    def somebody_takes_the_rest(self, thief: bool, agreed: bool, grace_s: int) -> None:
        """It goes to the depositor when due or agreed, and to nobody else or earlier."""
        by, admin = (self.world.bank if thief else self.depositor), self.operator.admin
        close = program.finish_close(
            self.world.program_id,
            vault=self.vault.address,
            depositor=by.pubkey(),
            mint=self.world.mint,
            agreed_by=(self.operator.config, admin.pubkey()) if agreed else None,
        )
        self.world.token_account(by.pubkey())
        rest = self.world.balance(self.vault.tokens)
        done = self._try([close], [by, *([admin] if agreed else [])])
        since = self.closing_since
        due = agreed or (since is not None and self.world.now_s >= since + self.grace_s)
        due = due and self.world.slot > self.vault.salt + SALT_WINDOW_SLOTS
        assert done == (due and not thief), "the depositor always gets the rest after grace, nobody else ever"
        if done:
            event("the depositor took the rest")
            assert self.world.balance(self.home) == self.returned_before + rest
            assert sum(self._paid()) - self.paid_before + rest == self.deposited
            self._old_messages_are_worthless()
            self.closed.append(self.vault)
            self._open(grace_s, START)

    @rule(grace_s=GRACES)
    def the_depositor_leaves(self, grace_s: int) -> None:
        """Whatever happened before: start, wait for the grace, take the rest."""
        if self.closing_since is None:
            self.depositor_starts_or_cancels_the_close(cancel=False)
        self.world.wait(self.grace_s, SALT_WINDOW_SLOTS + 1)
        self.somebody_takes_the_rest(thief=False, agreed=False, grace_s=grace_s)
        assert self.closing_since is None, "a depositor who waited for the grace is out"

    @rule(amount=st.integers(1, 500), thief=st.booleans(), living=st.booleans())
    def tokens_go_astray_and_are_rescued(self, amount: int, thief: bool, living: bool) -> None:
        """Sent to a vault that is gone: only its depositor gets them back, and only from there."""
        if living or not self.closed:
            assert not self._try([self._rescue(self.vault)], [self.depositor]), "a close without grace"
            return
        vault = self.closed[-1]
        self.world.token_account(vault.address, amount=amount)
        before = self.world.balance(self.home)
        rescuing = self._rescue(vault)
        if thief:
            bank = self.world.bank.pubkey()
            theirs = self.world.token_account(bank)
            assert not self._try([with_accounts(rescuing, {1: bank, 3: theirs})], [self.world.bank])
        assert self._try([rescuing], [self.depositor])
        event("rescued")
        assert self.world.balance(self.home) == before + amount
        self.returned_before += amount

    def _rescue(self, vault: Vault) -> Instruction:
        self.world.token_account(self.depositor.pubkey())
        return program.rescue(
            self.world.program_id,
            depositor=self.depositor.pubkey(),
            config=self.operator.config,
            mint=self.world.mint,
            salt=vault.salt,
        )

    def _old_messages_are_worthless(self) -> None:
        again = self.world.opening(self.vault, grace_s=self.grace_s)
        assert not self._try(again, [self.depositor]), "an address was used twice"
        address, _ = find_vault(
            self.world.program_id, self.depositor.pubkey(), self.vault.operator.config, self.vault.salt
        )
        assert not self.world.exists(address)

    # --- what must hold ---------------------------------------------------------------------------------------------

    @invariant()
    def deposits_are_payouts_and_balance(self) -> None:
        paid = sum(self._paid()) - self.paid_before
        assert self.deposited == paid + self.world.balance(self.vault.tokens)
        assert paid == self.world.state(self.vault).settled == self.settled

    @invariant()
    def settled_never_decreases(self) -> None:
        now = self.world.state(self.vault).settled
        assert now >= (self.highest_settled if self.seen_vault == self.vault.address else 0)
        self.highest_settled, self.seen_vault = now, self.vault.address

    @invariant()
    def a_loss_is_bounded_by_the_caps_that_were_signed(self) -> None:
        """Nothing was ever paid beyond the highest cap that the depositor signed for this vault."""
        assert self.settled <= max([0, *(cap.cap for cap in self.caps)])

    @invariant()
    def nothing_but_the_depositors_own_account_got_the_rest(self) -> None:
        stolen = self.world.balance(token_account_of(self.world.bank.pubkey(), self.world.mint))
        assert stolen == 0


TestVaultMachine = VaultMachine.TestCase
TestVaultMachine.settings = settings(
    max_examples=int(os.environ.get("VAULT_EXAMPLES", "60")),
    stateful_step_count=50,
    deadline=None,
    derandomize=os.environ.get("CI") == "true",
    suppress_health_check=list(HealthCheck),
)
