"""The program in the repository is what its source builds to, byte for byte, and a cluster's own loader takes it."""

from __future__ import annotations

import importlib.util
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.litesvm import LiteSVM
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.system_program import ID as SYSTEM_PROGRAM
from solders.system_program import CreateAccountParams, create_account
from solders.transaction import VersionedTransaction
from solders.transaction_metadata import TransactionMetadata

from tests.support.svm import World, vault_program

ROOT = Path(__file__).resolve().parents[3]
BUILD = ROOT / "chain" / "program" / "build.py"
LOADER = Pubkey.from_string("BPFLoaderUpgradeab1e11111111111111111111111")
RENT_SYSVAR = Pubkey.from_string("SysvarRent111111111111111111111111111111111")
CLOCK_SYSVAR = Pubkey.from_string("SysvarC1ock11111111111111111111111111111111")


def build_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vault_build", BUILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_rebuild_yields_the_same_bytes() -> None:
    done = subprocess.run([sys.executable, str(BUILD), "--check"], capture_output=True, text=True, check=False, cwd="/")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_place_of_the_source_does_not_get_into_the_program(tmp_path: Path) -> None:
    copied = shutil.copytree(BUILD.parent, tmp_path / "elsewhere")

    assert build_module().build(copied) == vault_program()


def test_check_notices_a_changed_source(tmp_path: Path) -> None:
    copied = shutil.copytree(BUILD.parent, tmp_path / "changed")
    state = copied / "state.h"
    state.write_text(state.read_text().replace("#define MINIMUM_GRACE_S 3600", "#define MINIMUM_GRACE_S 0"))

    assert build_module().build(copied) != vault_program()


class Deployer:
    """Uploads a program through the upgradeable loader, as `solana program deploy` does it on a real cluster."""

    def __init__(self, svm: LiteSVM, payer: Keypair) -> None:
        self.svm, self.payer = svm, payer

    def rent(self, size: int) -> int:
        return int(self.svm.minimum_balance_for_rent_exemption(size))

    def deploy(self, program: bytes) -> Pubkey:
        address, buffer = Keypair(), Keypair()
        self._upload(buffer, program)
        payer = self.payer.pubkey()
        data_address, _ = Pubkey.find_program_address([bytes(address.pubkey())], LOADER)
        create = CreateAccountParams(
            from_pubkey=payer, to_pubkey=address.pubkey(), lamports=self.rent(36), space=36, owner=LOADER
        )
        metas = [
            AccountMeta(payer, True, True),
            AccountMeta(data_address, False, True),
            AccountMeta(address.pubkey(), False, True),
            AccountMeta(buffer.pubkey(), False, True),
            AccountMeta(RENT_SYSVAR, False, False),
            AccountMeta(CLOCK_SYSVAR, False, False),
            AccountMeta(SYSTEM_PROGRAM, False, False),
            AccountMeta(payer, True, False),
        ]
        deploy = Instruction(LOADER, struct.pack("<IQ", 2, len(program)), metas)
        self.send([create_account(create), deploy], [self.payer, address])
        return address.pubkey()

    def send(self, instructions: list[Instruction], signers: list[Keypair]) -> None:
        self.svm.expire_blockhash()
        blockhash = self.svm.latest_blockhash()
        message = MessageV0.try_compile(self.payer.pubkey(), instructions, [], blockhash)
        result = self.svm.send_transaction(VersionedTransaction(message, signers))
        assert isinstance(result, TransactionMetadata), result.meta().logs()

    def _upload(self, buffer: Keypair, program: bytes) -> None:
        payer, size = self.payer.pubkey(), 37 + len(program)
        create = CreateAccountParams(
            from_pubkey=payer, to_pubkey=buffer.pubkey(), lamports=self.rent(size), space=size, owner=LOADER
        )
        metas = [AccountMeta(buffer.pubkey(), False, True), AccountMeta(payer, False, False)]
        initialize = Instruction(LOADER, struct.pack("<I", 0), metas)
        self.send([create_account(create), initialize], [self.payer, buffer])
        writer = [AccountMeta(buffer.pubkey(), False, True), AccountMeta(payer, True, False)]
        for at in range(0, len(program), 1000):
            chunk = program[at : at + 1000]
            write = struct.pack("<IIQ", 1, at, len(chunk)) + chunk
            self.send([Instruction(LOADER, write, writer)], [self.payer])


def test_a_clusters_loader_deploys_it_and_it_works() -> None:
    """With the features of mainnet: the loader verifies the file, which the test suite's short cut does not."""
    svm = LiteSVM().with_mainnet_features().with_builtins()
    payer = Keypair()
    svm.airdrop(payer.pubkey(), 10**13)

    address = Deployer(svm, payer).deploy(vault_program())
    world = World(svm=svm, program_id=address, deploy=False)
    vault = world.open_vault(deposit=1_000)
    node = world.token_account(world.key().pubkey())
    world.capture(vault, [(node, 600)])

    assert world.balance(node) == 600
