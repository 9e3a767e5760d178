"""What a client asks for: one strict, versioned model. Unknown keys, guessed units and impossible values are refused.

`load_job_spec` turns whatever was parsed from YAML or JSON into a `JobSpec` or raises `Invalid` naming field, value and way
out. The model's own JSON form (`spec.wire()`) is canonical: equal specs have equal digests.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from torg_protocol.canonical import digest_of
from torg_protocol.errors import Invalid
from torg_protocol.ids import Digest, is_digest
from torg_protocol.placement import Placement
from torg_protocol.ports import MAX_PORTS, Port, clashes
from torg_protocol.quantities import CpuMillis, DecimalText, DurationMs, SizeBytes

_MINUTE_MS, _HOUR_MS, _DAY_MS = 60_000, 3_600_000, 86_400_000
HOST_PYTHON = "host-python"  # the node's own Python: an image that needs no registry, and has no command of its own
# Fields that came after the first release are left out of the wire form while they are empty: older specs keep their digests, and older
# nodes understand them.
_LEFT_OUT_WHEN_EMPTY = ("args", "workdir", "ports")
_RELATIVE_PATH = re.compile(r"(?!/)(?!.*(?:^|/)\.\.(?:/|$))[^\0]{1,512}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BlobRef(_Strict):
    """A content-addressed blob: its digest is its name and its checksum."""

    digest: Digest
    size_bytes: int = Field(ge=0)

    @field_validator("digest")
    @classmethod
    def _is_digest(cls, value: str) -> str:
        if not is_digest(value):
            raise ValueError('not a digest; write "sha256:" and 64 lower-case hex digits')
        return value


class Resources(_Strict):
    gpus: int = Field(default=0, ge=0, le=64)
    gpu_class: str | None = Field(default=None, max_length=64)
    min_vram: SizeBytes | None = None
    min_compute_capability: str | None = Field(default=None, pattern=r"^[0-9]{1,2}\.[0-9]$")
    cpus: CpuMillis = Field(default=1000, gt=0)
    memory: SizeBytes = Field(default=1 << 30, ge=16 << 20)
    disk: SizeBytes = Field(default=1 << 30, ge=16 << 20)
    shm: SizeBytes = Field(default=64 << 20, ge=0)

    @property
    def billable_gpus(self) -> int:
        """A job without GPUs occupies one slot and pays the node's price for one."""
        return max(self.gpus, 1)


class Limits(_Strict):
    max_duration: DurationMs = Field(default=_HOUR_MS, ge=1_000, le=30 * _DAY_MS)
    queue_timeout: DurationMs = Field(default=10 * _MINUTE_MS, ge=1_000, le=30 * _DAY_MS)
    max_price_per_hour: DecimalText | None = None  # per GPU, in token units
    max_cost: DecimalText | None = None  # in token units; default: price x GPUs x max_duration


class Checkpoint(_Strict):
    enabled: bool = False


class VerifyNone(_Strict):
    policy: Literal["none"] = "none"


class VerifyMetric(_Strict):
    """The marketplace recomputes `metric` of a catalogue workload before it pays. Only for workspaces digest-equal to the
    catalogue's, and never below the catalogue's own target."""

    policy: Literal["metric"]
    catalogue: str = Field(pattern=r"^[a-z0-9-]{1,32}$")
    metric: str = Field(max_length=32)
    target: DecimalText


Verify = Annotated[VerifyNone | VerifyMetric, Field(discriminator="policy")]


class Retry(_Strict):
    max_attempts: int = Field(default=3, ge=1, le=20)  # leases in all, after faults of nodes
    on_failure: int = Field(default=0, ge=0, le=10)  # further tries after the job's own non-zero exit


class JobSpec(_Strict):
    version: Literal[1]
    name: str = Field(default="job", pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    image: str = Field(default=HOST_PYTHON, min_length=1, max_length=512)
    command: tuple[str, ...] = Field(default=(), max_length=256, validate_default=True)  # empty: the image's entrypoint
    args: tuple[str, ...] = Field(default=(), max_length=256)  # after the command; without either: the image's own
    workdir: str | None = Field(
        default=None, pattern=r"^(/[^\x00]{0,511}|image)$"
    )  # "image": its own; default: the workspace
    env: dict[str, str] = Field(default_factory=dict, max_length=256)
    workspace: BlobRef | None = None  # tar + zstd, unpacked to the working directory
    resources: Resources = Resources()
    limits: Limits = Limits()
    network: Literal["none"] = "none"
    isolation: Literal["sandbox", "container", "gvisor"] = "sandbox"  # the least that will do
    checkpoint: Checkpoint = Checkpoint()
    outputs: tuple[str, ...] = Field(
        default=(), max_length=256
    )  # relative to the output directory; must exist at the end
    verify: Verify = VerifyNone()
    retry: Retry = Retry()
    lease_grace: DurationMs = Field(default=5 * _MINUTE_MS, ge=2_000, le=_DAY_MS)  # silence after which a node is lost
    placement: Placement = Placement()
    excluded_nodes: tuple[str, ...] = Field(default=(), max_length=256)
    ports: tuple[Port, ...] = Field(default=(), max_length=MAX_PORTS)  # on which it serves

    @field_validator("command")
    @classmethod
    def _command_or_image(cls, command: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not command and info.data.get("image") == HOST_PYTHON:
            raise ValueError("is missing")
        return command

    @field_validator("env")
    @classmethod
    def _env_names(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is None:
                raise ValueError(f'"{name}" is not a variable name')
            if name.startswith("TORG_"):
                raise ValueError(f'"{name}": names that start with TORG_ are set by the node')
        return env

    @field_validator("outputs")
    @classmethod
    def _output_paths(cls, outputs: tuple[str, ...]) -> tuple[str, ...]:
        for path in outputs:
            if _RELATIVE_PATH.fullmatch(path) is None:
                raise ValueError(f'"{path}" is not a relative path without ".."')
        return outputs

    @field_validator("ports")
    @classmethod
    def _ports(cls, ports: tuple[Port, ...]) -> tuple[Port, ...]:
        if problem := clashes(ports):
            raise ValueError(problem)
        return ports

    @model_validator(mode="after")
    def _gpu_constraints(self) -> JobSpec:
        resources = self.resources
        if resources.gpus == 0 and (resources.min_vram or resources.min_compute_capability):
            raise ValueError("resources: min_vram and min_compute_capability need gpus: 1 or more")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_empty(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        return {name: value for name, value in fields.items() if value or name not in _LEFT_OUT_WHEN_EMPTY}

    def wire(self) -> dict[str, Any]:
        """The canonical JSON form: base units, no defaults left out but those of later fields."""
        return self.model_dump(mode="json")

    @property
    def digest(self) -> Digest:
        return digest_of(self.wire())


def load_job_spec(raw: object) -> JobSpec:
    """Raises Invalid (code "spec_invalid") naming the first wrong field; `problems` lists all of them."""
    if not isinstance(raw, Mapping):
        raise Invalid(
            "a job spec is a mapping",
            code="spec_invalid",
            field="$",
            value=type(raw).__name__,
            hint="start with: version: 1",
        )
    try:
        return JobSpec.model_validate(raw)
    except ValidationError as error:
        problems = [_problem(item, raw) for item in error.errors(include_url=False)]
    first = problems[0]
    raise Invalid(
        f"job spec: {first['field']}: {first['message']}",
        code="spec_invalid",
        field=first["field"],
        value=first["value"],
        hint=first["hint"],
        problems=problems,
    )


def _problem(item: Any, raw: Mapping[Any, Any]) -> dict[str, Any]:
    location = _written(item["loc"], raw)
    value = item["input"] if isinstance(item["input"], str | int | float | bool) else None
    message, hint = item["msg"].removeprefix("Value error, "), None
    match item["type"]:
        case "extra_forbidden":
            known = _siblings(item["loc"])
            close = difflib.get_close_matches(str(location[-1]), known, n=1)
            message = "unknown key"
            hint = f'did you mean "{close[0]}"?' if close else "known here: " + ", ".join(known)
        case "missing":
            message, value = "is missing", None
        case "string_type" if isinstance(value, bool | int | float):
            message, hint = "a text is expected", f'put it in quotes: "{value}"'
        case "string_type":
            message = "a text is expected"
        case "tuple_type":
            message = "a list is expected"
            hint = f"write it like [{', '.join(value.split())}]" if isinstance(value, str) and value.strip() else None
        case "model_type" | "model_attributes_type" | "dict_type":
            message = "a mapping is expected"
        case "literal_error" | "union_tag_invalid":
            message = f"not one of: {item['ctx'].get('expected') or item['ctx'].get('expected_tags')}"
        case "int_parsing" | "int_type" | "int_from_float":
            message = "a whole number is expected"
        case "union_tag_not_found":
            message, hint = "says no policy", "write policy: none or policy: metric"
        case _:
            message = message[:1].lower() + message[1:]
    return {"field": ".".join(str(part) for part in location) or "$", "message": message, "value": value, "hint": hint}


def _written(location: tuple[int | str, ...], raw: object) -> tuple[int | str, ...]:
    """The place as its author wrote it: without the names of union members that pydantic puts in between."""
    found: list[int | str] = []
    for number, part in enumerate(location):
        is_last = number == len(location) - 1
        if isinstance(raw, Mapping):
            if part not in raw and not is_last:
                continue
            raw = raw.get(part)
        elif isinstance(raw, list | tuple) and isinstance(part, int) and part < len(raw):
            raw = raw[part]
        found.append(part)
    return tuple(found)


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the model at this place knows."""
    annotations: tuple[Any, ...] = (JobSpec,)
    for part in location[:-1]:
        if isinstance(part, int):  # a place in a list, whose members are what counts
            continue
        fields = [_models(annotation) for annotation in annotations]
        models = [model for found in fields for model in found]
        members = tuple(model for model in models if len(models) > 1 and _tag(model) == part)
        inner = [model.model_fields[str(part)].annotation for model in models if str(part) in model.model_fields]
        annotations = members or tuple(inner)
    return [name for annotation in annotations for model in _models(annotation) for name in model.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation may stand for: itself, or the members of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _tag(model: type[BaseModel]) -> str | None:
    policy = model.model_fields.get("policy")
    return None if policy is None else next(iter(get_args(policy.annotation)), None)
