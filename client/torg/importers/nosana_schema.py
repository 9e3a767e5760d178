"""Nosana's job definition as a strict model: their current schema, and the fields of older ones that files still carry.

Values that are only known while the job runs may stand as literals (`%%ops.ID.results.KEY%%`) or as markers
(`__spread__`, `__remove-if-empty__`); they are checked for their form here and resolved elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    Tag,
    model_validator,
)

from torg.importers.strict import Strict

LITERAL = re.compile(r"%%(ops|globals?)\.[^%]+%%")
REMOVE_IF_EMPTY = "__remove-if-empty__"
_MARKERS = ("__spread__", "__pairs__")
_PORT_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_LAST_PORT = 65_535


def _words(value: object) -> object:
    """A text (which a shell runs) or a list of texts; told apart here, so that a problem is told once."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise ValueError("a text or a list of texts is expected")
    for number, item in enumerate(value):
        if not isinstance(item, str):
            raise ValueError(f"item {number} is not a text")
    return tuple(value)


def _literal(value: str) -> str:
    if LITERAL.fullmatch(value) is None:
        raise ValueError("not a literal like %%ops.ID.results.KEY%%")
    return value


def _port(value: int) -> int:
    if not 1 <= value <= _LAST_PORT:
        raise ValueError(f"not a port: 1 to {_LAST_PORT}")
    return value


def _port_text(value: str) -> str:
    if LITERAL.fullmatch(value):
        return value
    match = _PORT_RANGE.fullmatch(value)
    if match is None or not int(match[1]) < int(match[2]) <= _LAST_PORT:
        raise ValueError('not a port: write a number, a range like "8000-8010" or a literal')
    return value


Words = Annotated[Any, BeforeValidator(_words)]
LiteralText = Annotated[str, AfterValidator(_literal)]
PortNumber = Annotated[StrictInt, AfterValidator(_port)]
PortText = Annotated[str, AfterValidator(_port_text)]


class Spread(Strict):
    """Stands for the items, or keys and values, of a result that is JSON."""

    spread: LiteralText = Field(alias="__spread__")
    chunked: StrictBool = False


class HttpCheck(Strict):
    type: Literal["http"]
    path: str
    method: Literal["GET", "POST", "PUT", "DELETE"]
    expected_status: Annotated[int, Field(ge=100, le=599)]
    headers: dict[str, str] = Field(default_factory=dict)
    body: Any = None
    continuous: StrictBool = False  # required of late; older files leave it out


class WebSocketCheck(Strict):
    type: Literal["websocket"]
    expected_response: str
    continuous: StrictBool


class ExposedPort(Strict):
    port: Annotated[
        Annotated[PortNumber, Tag("number")] | Annotated[PortText, Tag("text")],
        Discriminator(lambda value: "text" if isinstance(value, str) else "number"),
    ]
    type: Literal["web", "api", "webapi", "websocket", "none"] = "web"
    health_checks: tuple[Annotated[HttpCheck | WebSocketCheck, Field(discriminator="type")], ...] = ()


def _kind_of_port(value: object) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, dict):
        return "spread" if "__spread__" in value else "exposed port"
    return "number"


Exposed = Annotated[
    Annotated[PortNumber, Tag("number")]
    | Annotated[PortText, Tag("text")]
    | Annotated[ExposedPort, Tag("exposed port")]
    | Annotated[Spread, Tag("spread")],
    Discriminator(_kind_of_port),
]
Expose = Annotated[tuple[Exposed, ...], BeforeValidator(lambda value: value if isinstance(value, list) else [value])]


class S3Key(Strict):
    REGION: str
    ACCESS_KEY_ID: str
    SECRET_ACCESS_KEY: str


class S3Bucket(Strict):
    url: str
    files: tuple[str, ...] = ()


class S3Resource(Strict):
    type: Literal["S3"]
    target: str
    url: str | None = None
    files: tuple[str, ...] = ()
    bucket: str | None = None
    buckets: tuple[S3Bucket, ...] = ()
    allow_write: StrictBool = Field(default=False, alias="allowWrite")
    iam: S3Key | None = Field(default=None, alias="IAM")

    @model_validator(mode="after")
    def _one_source(self) -> S3Resource:
        if self.bucket and self.buckets:
            raise ValueError("bucket and buckets exclude each other")
        if not (self.url or self.bucket or self.buckets):
            raise ValueError("url, bucket or buckets is missing")
        if self.files and (self.bucket or self.buckets):
            raise ValueError("files go with url, or into each of buckets")
        return self


class HuggingFaceResource(Strict):
    type: Literal["HF"]
    target: str
    repo: str
    revision: str | None = None
    files: tuple[str, ...] = ()
    access_token: str | None = Field(default=None, alias="accessToken")


class OllamaResource(Strict):
    type: Literal["Ollama"]
    model: str
    target: str = "/root/.ollama/models"


def _marker(value: str) -> str:
    if value != REMOVE_IF_EMPTY:
        raise ValueError(f'a mapping is expected, or "{REMOVE_IF_EMPTY}"')
    return value


def _kind_of_resource(value: object) -> str:
    if isinstance(value, str):
        return "marker"
    if isinstance(value, dict) and "__spread__" in value:
        return "spread"
    return str(value.get("type")) if isinstance(value, dict) else "marker"


Resource = Annotated[
    Annotated[S3Resource, Tag("S3")]
    | Annotated[HuggingFaceResource, Tag("HF")]
    | Annotated[OllamaResource, Tag("Ollama")]
    | Annotated[Spread, Tag("spread")]
    | Annotated[Annotated[str, AfterValidator(_marker)], Tag("marker")],
    Discriminator(
        _kind_of_resource,
        custom_error_type="resource_type",
        custom_error_message="its type is not one of: S3, HF, Ollama",
    ),
]


def _variables(value: object) -> object:
    """`__pairs__` and `__spread__` may be given as what they stand for; that is filled in before anything is read from here."""
    if not isinstance(value, dict):
        return value
    return {name: said for name, said in value.items() if not (name in _MARKERS and isinstance(said, list | dict))}


Env = Annotated[dict[str, str], BeforeValidator(_variables)]


class Volume(Strict):
    name: str
    dest: str


class DockerLogin(Strict):
    username: str | None = None
    password: str | None = None
    email: str | None = None
    server: str | None = None


class Authentication(Strict):
    docker: DockerLogin | None = None


class RestartOnFailure(Strict):
    policy: Literal["on-failure"]
    restart_tries: Annotated[StrictInt, Field(ge=0)] | None = None


RestartPolicy = Annotated[
    Annotated[Literal["no", "always", "unless-stopped", "on-failure"], Tag("name")]
    | Annotated[RestartOnFailure, Tag("tries")],
    Discriminator(lambda value: "tries" if isinstance(value, dict | RestartOnFailure) else "name"),
]


class RunArgs(Strict):
    image: str | None = None  # required there too, unless `global` has one
    cmd: Words = None
    entrypoint: Words = None
    aliases: Words = None
    env: Env = Field(default_factory=dict)
    gpu: StrictBool = False
    expose: Expose = ()
    private: StrictBool = False
    volumes: tuple[Volume, ...] = ()
    resources: tuple[Resource, ...] = ()
    authentication: Authentication | None = None
    restart_policy: RestartPolicy | None = None
    work_dir: str | None = None
    output: str | None = None  # of an older schema
    required_vram: float | None = None  # of an older schema, in GB


class VolumeArgs(Strict):
    name: str


class LogResult(Strict):
    regex: str
    log_types: tuple[Literal["stdin", "stdout", "stderr", "nodeerr"], ...] = Field(alias="logType")


def _result(value: object) -> object:
    return {"regex": value, "logType": ["stdout", "stderr"]} if isinstance(value, str) else value


Result = Annotated[LogResult, BeforeValidator(_result)]


class Execution(Strict):
    group: str | None = None
    depends_on: tuple[str, ...] = ()
    stop_if_dependent_stops: StrictBool = False
    timeout: Annotated[float, Field(gt=0)] | None = None  # seconds


def _id(value: str) -> str:
    if not value or " " in value:
        raise ValueError("an id has at least one character and no spaces")
    return value


class RunOperation(Strict):
    type: Literal["container/run"]
    id: Annotated[str, AfterValidator(_id)]
    args: RunArgs
    results: dict[str, Result] = Field(default_factory=dict)
    execution: Execution = Execution()


class VolumeOperation(Strict):
    type: Literal["container/create-volume"]
    id: Annotated[str, AfterValidator(_id)]
    args: VolumeArgs
    results: dict[str, Result] = Field(default_factory=dict)
    execution: Execution = Execution()


class Global(Strict):
    image: str | None = None
    gpu: StrictBool = False
    entrypoint: Words = None
    env: Env = Field(default_factory=dict)
    work_dir: str | None = None
    variables: dict[str, str] = Field(default_factory=dict)


class Delivery(Strict):
    type: Literal["api", "api-listen"]
    args: dict[str, str] = Field(default_factory=dict)


class Logistics(Strict):
    send: Delivery | None = None
    receive: Delivery | None = None


class Ssh(Strict):
    public_keys: tuple[str, ...] = ()


class Definition(Strict):
    version: str
    type: Literal["container"]
    meta: dict[str, Any] = Field(default_factory=dict)
    logistics: Logistics | None = None
    deployment_id: str | None = None
    ssh: Ssh | None = None
    shared: Global = Field(default=Global(), alias="global")
    ops: tuple[Annotated[RunOperation | VolumeOperation, Field(discriminator="type")], ...]

    def runs(self) -> Iterator[tuple[int, RunOperation]]:
        """With their positions in the file."""
        return ((number, op) for number, op in enumerate(self.ops) if isinstance(op, RunOperation))

    def volumes(self) -> Iterator[tuple[int, VolumeOperation]]:
        return ((number, op) for number, op in enumerate(self.ops) if isinstance(op, VolumeOperation))
