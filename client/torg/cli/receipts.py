"""`torg receipt`: what was paid and why, and whether a receipt holds, without marketplace or network."""

from __future__ import annotations

import json
from pathlib import Path

import click
from pydantic import ValidationError

from torg.cli.session import Session, command, duration
from torg.errors import ReceiptInvalid
from torg_protocol.errors import Invalid
from torg_protocol.usage import SignedReceipt, verify_receipt


@click.group()
def receipt() -> None:
    """Show a job's receipts, or verify a receipt file without network."""


@receipt.command()
@click.argument("job_id")
@click.option("-o", "--output", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write them to a file.")
@command
async def show(session: Session, job_id: str, file: Path | None) -> None:
    """Fetch, verify and show the receipts of a job."""
    async with session.client() as client:
        receipts = await client.receipts(job_id)
    value = [signed.wire() for signed in receipts]
    if file is not None:
        file.write_text(json.dumps(value, indent=2) + "\n")
    session.show(value, "\n\n".join(receipt_text(signed) for signed in receipts) or "no receipt yet")


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


def read_receipts(file: Path) -> list[SignedReceipt]:
    """Raises Invalid `receipt_malformed` for anything that is not a list of receipts."""
    try:
        raw = json.loads(file.read_bytes())
        return [SignedReceipt.model_validate(item) for item in (raw if isinstance(raw, list) else [raw])]
    except OSError as error:
        raise Invalid(
            f"cannot read it: {error.strerror}", code="receipt_not_found", field="file", value=str(file)
        ) from error
    except (ValueError, ValidationError) as error:
        raise Invalid(
            "this is not a receipt",
            code="receipt_malformed",
            field="file",
            value=str(file),
            hint=str(error).splitlines()[0],
        ) from error


def receipt_text(signed: SignedReceipt) -> str:
    item = signed.receipt
    lines = [
        f"receipt of attempt {item.attempt}, job {item.job_id}",
        f"  node        {item.node}  ({item.executor or 'never started'}, isolation {item.isolation or '-'})",
        f"  result      {item.state} ({item.reason}), exit code {item.exit_code}",
        f"  verdict     {item.verdict.policy}: {item.verdict.result} {json.dumps(item.verdict.measured) if item.verdict.measured else ''}".rstrip(),
        f"  billed      {duration(item.billed_ms)}, not billed {duration(item.unbilled_ms)}, amount {item.amount} base units",
        f"  spec        {item.spec_digest}",
        f"  image       {item.image} {item.image_digest or ''}".rstrip(),
    ]
    lines += [f"  output      {output.path}  {output.digest}" for output in item.outputs]
    return "\n".join(lines)
