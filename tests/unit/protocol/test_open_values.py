"""A word that only a newer marketplace knows: shown as it is wherever it is answered, refused wherever it is asked."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError
from solders.keypair import Keypair

from tests.support.answers import job_view
from tests.support.receipts import make_receipt
from tests.unit.protocol.test_views import models
from torg_protocol.api import JobPage, JobReceipts, JobView
from torg_protocol.documents import View, Wire
from torg_protocol.errors import Invalid
from torg_protocol.jobspec import JobSpec, load_job_spec
from torg_protocol.open_values import is_known, read_openly, unknown_member
from torg_protocol.states import EndReason, JobState
from torg_protocol.usage import SignedReceipt, verify_receipt

LATER = "a_later_word"


def documents(annotation: Any, *, deep: bool) -> Iterator[Any]:
    """What has the later word at one place of a value of this type, and nothing else."""
    if get_origin(annotation) is Literal:
        if len(get_args(annotation)) > 1 and all(isinstance(word, str) for word in get_args(annotation)):
            yield LATER
    elif get_origin(annotation) is tuple:
        yield from ([item] for item in documents(get_args(annotation)[0], deep=deep))
    elif isinstance(annotation, type) and issubclass(annotation, enum.StrEnum):
        yield LATER
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if deep and annotation is not JobSpec:
            yield from fields(annotation, deep=True)
    else:
        for part in get_args(annotation):
            yield from documents(part, deep=deep)


def fields(model: type[BaseModel], *, deep: bool) -> Iterator[dict[str, Any]]:
    for name, field in model.model_fields.items():
        yield from ({field.alias or name: item} for item in documents(field.annotation, deep=deep))


def refused_words(model: type[BaseModel], document: dict[str, Any]) -> list[str]:
    try:
        model.model_validate(document)
    except ValidationError as error:  # most members are missing
        return [item["type"] for item in error.errors() if item["type"] in {"enum", "literal_error"}]
    return []


def answers() -> list[Any]:
    return [
        pytest.param(view, document, id=f"{view.__name__}-{number}")
        for view in models(View)
        for number, document in enumerate(fields(view, deep=True))
    ]


def requests() -> list[Any]:
    return [
        pytest.param(wire, document, id=f"{wire.__name__}-{number}")
        for wire in models(Wire)
        if not issubclass(wire, View)
        for number, document in enumerate(fields(wire, deep=False))
    ]


@pytest.mark.parametrize(("view", "document"), answers())
def test_every_word_of_every_answer_is_open(view: type[BaseModel], document: dict[str, Any]) -> None:
    assert refused_words(view, document) == []


@pytest.mark.parametrize(("wire", "document"), requests())
def test_every_word_of_what_is_asked_or_signed_is_closed(wire: type[BaseModel], document: dict[str, Any]) -> None:
    assert refused_words(wire, document) != []


def test_there_are_many_of_them() -> None:
    assert len(answers()) > 40
    assert len(requests()) > 10


def test_an_unknown_state_is_shown_compared_and_passed_on_as_it_is() -> None:
    job = job_view("j", JobState.LEASED, spec=load_job_spec({"version": 1, "command": ["x"]}))
    raw = {**job.wire(), "state": LATER, "reason": "bored"}
    page = JobPage.model_validate({"jobs": [raw]})
    (read,) = page.jobs
    assert isinstance(read.state, JobState)
    assert (f"{read.state}", read.state == LATER, read.state in set(JobState)) == (LATER, True, False)
    assert (is_known(read.state), is_known(job.state)) == (False, True)
    assert read.wire() == raw
    assert JobPage.model_validate_json(page.model_dump_json()) == page
    with pytest.raises(ValueError, match=LATER):
        JobState(LATER)
    for no_word in (3, None, ["leased"]):
        with pytest.raises(ValidationError):
            JobView.model_validate({**raw, "state": no_word})


def test_a_later_reason_in_a_receipt_leaves_its_signatures_good() -> None:
    raw = make_receipt(Keypair(), Keypair(), reason=unknown_member(EndReason, LATER)).wire()
    for read in (JobReceipts.model_validate({"receipts": [raw]}).receipts[0], read_openly(SignedReceipt, raw)):
        assert str(read.receipt.reason) == LATER
        assert verify_receipt(read) == []
    with pytest.raises(ValidationError):
        SignedReceipt.model_validate(raw)


def test_of_a_later_spec_words_are_shown_and_kinds_that_nobody_here_knows_are_left_out() -> None:
    spec = load_job_spec({"version": 1, "command": ["x"], "outputs": ["a"]})
    later = {
        **spec.wire(),
        "isolation": "tee",
        "verify": {"policy": "oracle", "of": "delphi"},
        "inputs": [{"kind": "torrent", "path": "/d"}],
        "network": "mesh",
    }
    read = JobView.model_validate({**job_view("j", JobState.LEASED, spec=spec).wire(), "spec": later}).spec
    assert (read.isolation, read.network) == ("tee", "mesh")
    assert (read.verify, read.inputs, read.outputs) == (spec.verify, (), ("a",))
    with pytest.raises(Invalid):
        load_job_spec({"version": 1, "command": ["x"], "isolation": "tee"})
