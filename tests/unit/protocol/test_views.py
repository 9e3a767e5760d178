"""A client of this release reads the answers of a newer marketplace; what is asked, signed or hashed is read whole or not at all."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

import torg
import torg_protocol
from tests.support.answers import job_view
from torg_protocol.api import JobPage, LeaseView, TaskView
from torg_protocol.documents import Document, View, Wire
from torg_protocol.ids import LeaseId, NodeId
from torg_protocol.jobspec import load_job_spec
from torg_protocol.states import JobState, LeaseState
from torg_protocol.tasks import TaskState

LATER = {"a_later_member": {"of": "a newer release"}}
# What the client asks for and must take whole, because it checks a signature over it.
SIGNED_ANSWERS = {"SignedRentalOffer", "CloseConsent"}


def modules() -> list[Any]:
    return [
        importlib.import_module(f"torg_protocol.{item.name}") for item in pkgutil.iter_modules(torg_protocol.__path__)
    ]


def models(base: type[BaseModel]) -> list[type[BaseModel]]:
    modules()
    found: dict[str, type[BaseModel]] = {}
    waiting = list(base.__subclasses__())
    while waiting:
        model = waiting.pop()
        waiting += model.__subclasses__()
        if model.__module__.startswith("torg_protocol"):
            found[model.__name__] = model
    return [found[name] for name in sorted(found)]


def refuses_later_members(model: type[BaseModel]) -> bool:
    with pytest.raises(ValidationError) as refused:
        model.model_validate({**LATER, **dict.fromkeys(model.model_fields, ...)})
    return any(error["type"] == "extra_forbidden" for error in refused.value.errors())


@pytest.mark.parametrize("model", models(View), ids=lambda model: model.__name__)
def test_a_view_leaves_out_what_it_does_not_know(model: type[BaseModel]) -> None:
    assert not refuses_later_members(model)


@pytest.mark.parametrize(
    "model", [item for item in models(Wire) if not issubclass(item, View)], ids=lambda item: item.__name__
)
def test_everything_else_on_the_wire_refuses_it(model: type[BaseModel]) -> None:
    assert not model.model_fields or refuses_later_members(model)


def test_nothing_signed_has_a_view_in_it() -> None:
    def within(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
        yield model
        for field in model.model_fields.values():
            for inner in models_in(field.annotation):
                yield from within(inner)

    assert [(item, inner) for item in models(Document) for inner in within(item) if issubclass(inner, View)] == []


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from models_in(part)


def test_a_job_of_a_newer_release_is_read_at_every_depth() -> None:
    spec = load_job_spec({"version": 1, "command": ["x"]})
    task = TaskView(task="t", state=TaskState.RUNNING)
    lease = LeaseView(
        lease_id=LeaseId("l"), attempt=1, node=NodeId("n"), state=LeaseState.RUNNING, price_per_gpu_hour=1,
        granted_at_ms=1, tasks=(task,),
    )  # fmt: skip
    job = job_view("j", JobState.LEASED, spec=spec, leases=(lease,))
    page = JobPage(jobs=(job,))
    raw = page.wire()
    (sent,) = raw["jobs"]
    for part in (raw, sent, sent["spec"], sent["spec"]["resources"], sent["leases"][0], sent["leases"][0]["tasks"][0]):
        part.update(LATER)

    assert JobPage.model_validate(raw) == page


def test_every_answer_that_the_sdk_reads_is_a_view() -> None:
    """By its sources: the first argument of every `ask` and `ask_pages`."""
    asked = set()
    for file in Path(torg.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in {"ask", "ask_pages"}
            ):
                asked |= (
                    {part.id for part in ast.walk(node.args[0]) if isinstance(part, ast.Name)} if node.args else set()
                )
    named = {name for name in asked if name[0].isupper()}

    assert {"JobView", "Quote", "BlobUpload"} <= named
    assert named - {model.__name__ for model in models(View)} == SIGNED_ANSWERS
