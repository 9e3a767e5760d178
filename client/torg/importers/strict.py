"""Checking a foreign document against its schema: all problems at once, each with its place and a way out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from torg_protocol.errors import Invalid
from torg_protocol.spec_problems import problems_of

M = TypeVar("M", bound=BaseModel)


class Strict(BaseModel):
    """Unknown keys are errors, as in the platforms' own validators."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def checked(model: type[M], raw: object, title: str) -> M:
    """Raises Invalid (code "spec_invalid"), with all problems."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        found = problems_of(error.errors(include_url=False), raw, model)
    raise refusal(title, found)


def problem(field: str, message: str, value: object = None, hint: str | None = None) -> dict[str, Any]:
    return {"field": field, "message": message, "value": value, "hint": hint}


def refusal(title: str, problems: Sequence[dict[str, Any]]) -> Invalid:
    first = problems[0]
    return Invalid(
        f"{title}: {first['field']}: {first['message']}",
        code="spec_invalid",
        field=first["field"],
        value=first["value"],
        hint=first["hint"],
        problems=list(problems),
    )
