"""`torg receipt`: what was paid and why, and whether a receipt holds, without marketplace or network."""

from __future__ import annotations

import json
from pathlib import Path

import click
from pydantic import ValidationError

from torg.cli.groups import Group
from torg.cli.present import Coin, coin, coin_of, duration, narrow_table, not_shown
from torg.cli.session import JOB, Session, command, resolve
from torg.cli.terminal import columns
from torg.config import pinned
from torg.errors import ReceiptInvalid
from torg.journal import Journal
from torg_protocol.errors import Invalid
from torg_protocol.open_values import read_openly
from torg_protocol.usage import SignedReceipt, verify_receipt


@click.group(cls=Group)
def receipt() -> None:
    """Show a job's receipts, or verify a receipt file without network."""


@receipt.command()
@JOB
@click.option("-o", "--output", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write them to a file.")
@command
async def show(session: Session, job_id: str, file: Path | None) -> None:
    """Fetch, verify and show the receipts of a job."""
    async with session.client() as client:
        market = await client.market()
        receipts = await client.receipts(await resolve(client, job_id))
    money = coin(market)
    value = [signed.wire() for signed in receipts]
    if file is not None:
        file.write_text(json.dumps(value, indent=2) + "\n")
    text = "\n\n".join(receipt_text(signed, money) for signed in receipts)
    session.show(value, text or "no receipt yet: there is one for each attempt that has been decided")
    if file is not None:
        session.hint(f"check it anywhere:  torg receipt verify {file} --marketplace-key {market.marketplace}")


@click.command()
@click.option(
    "-o", "--output", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write all of them to a file."
)
@click.option("--offline", is_flag=True, help="Do not ask the marketplace for receipts that are missing here.")
@command
async def receipts(session: Session, file: Path | None, offline: bool) -> None:
    """All receipts that this computer keeps, oldest first; `torg audit` checks them."""
    from torg.cli.cost import bring_up_to_date

    if not offline:
        await bring_up_to_date(session, None)
    chain = pinned(session.config)["chain"]
    money = coin_of(chain["mint"], chain["decimals"])
    kept = [read_openly(SignedReceipt, item.body) for item in Journal(session.config.journal_path).receipts()]
    value = [signed.wire() for signed in kept]
    if file is not None:
        file.write_text(json.dumps(value, indent=2) + "\n")
    rows = [_row(signed, money) for signed in kept]
    headings = ("job", "attempt", "node", "result", "verdict", "billed", "not billed", "amount", "node signed")
    spare = ("node signed", "not billed", "verdict", "attempt", "billed")
    text, left_out = narrow_table(headings, rows, columns(), spare, "result")
    session.show(value, text if rows else "no receipts yet")
    if rows and left_out and not session.as_json:
        session.hint(not_shown(left_out, columns(), "torg receipts"))


def _row(signed: SignedReceipt, money: Coin) -> tuple[str, ...]:
    item = signed.receipt
    return (
        item.job_id,
        str(item.attempt),
        item.node[:8],
        str(item.reason),
        item.verdict.result,
        duration(item.billed_ms),
        duration(item.unbilled_ms),
        money.text(item.amount),
        "yes" if signed.node_signature else "no",
    )


@receipt.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--marketplace-key", help="The public key that must have signed. Without it only wholeness is checked.")
@command
async def verify(session: Session, file: Path, marketplace_key: str | None) -> None:
    """Check a receipt file against its signatures and sums. Needs no network."""
    receipts = read_receipts(file)
    problems = [
        f"{signed.receipt.lease_id}: {problem}"
        for signed in receipts
        for problem in verify_receipt(signed, marketplace=marketplace_key)
    ]
    if problems:
        raise ReceiptInvalid(
            "this receipt does not hold:\n  - " + "\n  - ".join(problems),
            field="file",
            value=str(file),
            problems=problems,
        )
    session.show({"valid": True, "receipts": len(receipts)}, f"{file}: {len(receipts)} receipts hold")
    if marketplace_key is None:
        signers = ", ".join(sorted({signed.receipt.marketplace for signed in receipts}))
        session.hint(f"whole, and signed by {signers}: whether that is who you think, --marketplace-key says")


def read_receipts(file: Path) -> list[SignedReceipt]:
    """Raises Invalid `receipt_malformed` for anything that is not a list of receipts."""
    try:
        raw = json.loads(file.read_bytes())
        found = [read_openly(SignedReceipt, item) for item in (raw if isinstance(raw, list) else [raw])]
        if not found:
            raise ValueError("there is none in it")
        return found
    except OSError as error:
        raise Invalid(
            f"cannot read the receipt file: {error.strerror}",
            code="receipt_not_found",
            field="file",
            value=str(file),
            hint="torg receipt show JOB -o FILE writes one",
        ) from error
    except (ValueError, ValidationError) as error:
        raise Invalid(
            "this is not a receipt",
            code="receipt_malformed",
            field="file",
            value=str(file),
            hint=str(error).splitlines()[0],
        ) from error


def receipt_text(signed: SignedReceipt, money: Coin) -> str:
    item = signed.receipt
    lines = [
        f"receipt of attempt {item.attempt}, job {item.job_id}",
        f"  node        {item.node}  ({item.executor or 'never started'}, isolation {item.isolation or '-'})",
        f"  result      {item.state} ({item.reason}), exit code {item.exit_code}",
        f"  verdict     {item.verdict.policy}: {item.verdict.result} {json.dumps(item.verdict.measured) if item.verdict.measured else ''}".rstrip(),
        f"  billed      {duration(item.billed_ms)}, not billed {duration(item.unbilled_ms)}, amount {money.text(item.amount)}",
        f"  spec        {item.spec_digest}",
        f"  image       {item.image} {item.image_digest or ''}".rstrip(),
    ]
    if item.verification_amount:
        lines.insert(5, f"  in that     {money.text(item.verification_amount)} for its verification")
    lines += [f"  input       {item.path}  {item.name or ''}  {item.digest}" for item in item.inputs]
    lines += [f"  output      {output.path}  {output.digest}" for output in item.outputs]
    return "\n".join(lines)
