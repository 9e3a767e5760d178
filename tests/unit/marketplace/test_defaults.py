"""What the documents say of settings and tables is what there is."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from torg_marketplace.rules.policy import MarketPolicy
from torg_marketplace.settings import Settings
from torg_marketplace.storage.registry import metadata
from torg_protocol.errors import Invalid
from torg_protocol.quantities import parse_duration_ms

DOCS = Path(__file__).resolve().parents[3] / "docs"
NOT_SETTINGS_OF_THE_PAGE = {
    "data",
    "workloads",
}  # the one that each command has; the package's own folder, said in words


def rows(page: Path, heading: str) -> Iterator[list[str]]:
    """Cells of the tables below a heading."""
    part = page.read_text().split(f"\n{heading}\n", 1)[1].split("\n## ", 1)[0]
    for line in part.splitlines():
        if line.startswith("| ") and not line.startswith("| flag"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def documented() -> dict[str, str]:
    """Setting to what the page says its default is."""
    found: dict[str, str] = {}
    for _, variables, default, *_ in rows(DOCS / "how-to" / "run-a-marketplace.md", "## Settings"):
        names = [name.lower() for name in re.findall(r"`([A-Z_]+)`", variables)]
        values = default.split(", ") if len(names) > 1 and ", " in default else [default] * len(names)
        found |= dict(zip(names, values, strict=True))
    return found


def test_every_setting_is_on_the_page_and_no_other() -> None:
    assert set(documented()) | NOT_SETTINGS_OF_THE_PAGE == set(Settings.model_fields) | NOT_SETTINGS_OF_THE_PAGE


@pytest.mark.parametrize("name", sorted(set(Settings.model_fields) & set(documented())))
def test_the_page_says_the_default(name: str) -> None:
    default, said = Settings.model_fields[name].default, documented()[name].partition(":")[0]
    if said == "http" or default in (None, ()):
        return  # an address, or nothing, said in words
    if isinstance(default, int) and not said.isdigit():
        with contextlib.suppress(ValueError):
            said = str(parse_duration_ms(said))
    assert said == str(default)


def test_what_the_policy_has_too_has_one_default() -> None:
    settings = Settings(data=Path("x"))
    assert settings.policy(6) == MarketPolicy()


def test_every_table_is_on_the_page_and_no_other() -> None:
    cells = (cells for cells in rows(DOCS / "reference" / "what-is-kept.md", "## Tables of a marketplace"))
    named = [name for first, *_ in cells for name in re.findall(r"`([a-z_]+)`", first)]
    assert sorted(named) == sorted(metadata.tables)


@pytest.mark.parametrize("longer", [{"usage_interval": "30m"}, {"settlement_age": "1h"}])
def test_vaults_must_not_be_empty_before_work_is_paid(longer: dict[str, str]) -> None:
    with pytest.raises(Invalid) as refused:
        Settings.read({"data": Path("x"), **longer})
    assert (refused.value.code, refused.value.field) == ("setting_invalid", "TORG_MARKETPLACE_MIN_VAULT_GRACE_S")
    needed = next(word for word in str(refused.value.hint).split() if word.strip(":").isdigit()).strip(":")
    Settings.read({"data": Path("x"), **longer, "min_vault_grace_s": int(needed)})
    with pytest.raises(Invalid):
        Settings.read({"data": Path("x"), **longer, "min_vault_grace_s": int(needed) - 1})
