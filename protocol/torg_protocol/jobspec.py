"""What a client asks for: one strict, versioned model. Unknown keys, guessed units and impossible values are refused.

`load_job_spec` turns whatever was parsed from YAML or JSON into a `JobSpec` or raises `Invalid` naming field, value and way
out. The model's own JSON form (`spec.wire()`) is canonical: equal specs have equal digests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from torg_protocol.canonical import digest_of
from torg_protocol.data import InputFile
from torg_protocol.errors import Invalid
from torg_protocol.ids import Digest, is_digest, is_digest_of_bytes
from torg_protocol.inputs import MAX_INPUTS, BlobInput, DataInput, Input, UrlInput
from torg_protocol.network import EgressKind, Network, egress_kind
from torg_protocol.placement import Placement
from torg_protocol.ports import MAX_PORTS, Port, clashes
from torg_protocol.quantities import CpuMillis, DecimalText, DurationMs, GpuMillis, SizeBytes, format_cpu_millis
from torg_protocol.registries import MAX_REGISTRIES, RegistryHost, RegistryLogin, registry_problems
from torg_protocol.sealing import Sealed, sealed_problems
from torg_protocol.secrets import SealedSecrets
from torg_protocol.spec_problems import BETWEEN_FIELDS, problems_of, unkept_problems
from torg_protocol.strict import Strict, check_env
from torg_protocol.tasks import BLOB_IMAGE, HOST_PYTHON, MAX_TASKS, Task, task_problems
from torg_protocol.volumes import MAX_VOLUMES, Volume, Volumes, volume_problems

_MINUTE_MS, _HOUR_MS, _DAY_MS = 60_000, 3_600_000, 86_400_000
# Fields that came after the first release are left out of the wire form while they are empty: older specs keep their digests, and older
# nodes understand them.
_LEFT_OUT_WHEN_EMPTY = (
    "args",
    "workdir",
    "ports",
    "tasks",
    "volumes",
    "inputs",
    "secrets",
    "root",
    "sealed",
    "spot",
    "gang",
    "registries",
)
MAX_DURATION_MS = 30 * _DAY_MS
SPOT_PATIENCE_MS = _DAY_MS  # how much longer a spot job's cap lives: preemptions cost it time, and count as no attempt
_RELATIVE_PATH = re.compile(r"(?!/)(?!.*(?:^|/)\.\.(?:/|$))[^\0]{1,512}")


class BlobRef(Strict):
    """A content-addressed blob: its digest is its name and its checksum."""

    digest: Digest
    size_bytes: int = Field(ge=0)

    @field_validator("digest")
    @classmethod
    def _is_digest(cls, value: str) -> str:
        if not is_digest(value):
            raise ValueError('not a digest; write "sha256:" and 64 lower-case hex digits')
        return value


WHOLE_GPU_MILLI = 1000


class Resources(Strict):
    """With a `gpu_fraction` below 1 the job shares its one GPU with other jobs of the same client, never with a stranger's: it pays that
    part of the price, and takes turns with them. The GPU's memory is not divided: each sees all of it, and `min_vram` is the GPU's."""

    gpus: int = Field(default=0, ge=0, le=64)
    gpu_fraction: GpuMillis = Field(default=WHOLE_GPU_MILLI, exclude_if=lambda milli: milli == WHOLE_GPU_MILLI)
    gpu_class: str | None = Field(default=None, max_length=512)  # as its driver names it; several: "A|B"
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

    @property
    def is_share(self) -> bool:
        """Whether it takes a part of a GPU only."""
        return self.gpu_fraction < WHOLE_GPU_MILLI

    def price_of(self, price_per_gpu_hour: int) -> int:
        """What a billable GPU costs this job per hour, in base units: of a shared GPU its part of the price, rounded down."""
        return price_per_gpu_hour * self.gpu_fraction // WHOLE_GPU_MILLI


class Limits(Strict):
    max_duration: DurationMs = Field(default=_HOUR_MS, ge=1_000, le=MAX_DURATION_MS)
    queue_timeout: DurationMs = Field(default=10 * _MINUTE_MS, ge=1_000, le=30 * _DAY_MS)
    max_price_per_hour: DecimalText | None = None  # per GPU, in token units
    max_cost: DecimalText | None = None  # in token units; default: price x GPUs x max_duration


class Checkpoint(Strict):
    enabled: bool = False


class VerifyNone(Strict):
    policy: Literal["none"] = "none"


class VerifyMetric(Strict):
    """The marketplace recomputes `metric` of a catalogue workload before it pays. Only for workspaces digest-equal to the
    catalogue's, and never below the catalogue's own target."""

    policy: Literal["metric"]
    catalogue: str = Field(pattern=r"^[a-z0-9-]{1,32}$")
    metric: str = Field(max_length=32)
    target: DecimalText


class VerifyReplay(Strict):
    """The marketplace executes so many random segments of the lease's checkpoints again, chosen after the report, before it pays. Only for
    unchanged workspaces of the catalogue."""

    policy: Literal["replay"]
    catalogue: str = Field(pattern=r"^[a-z0-9-]{1,32}$")
    segments: int = Field(default=1, ge=1, le=8)


class VerifyActivation(Strict):
    """The marketplace checks by fingerprints of the last hidden state that so many of the texts, chosen after the report, were written by
    the model that was asked for, in its precision. Only for unchanged inference workloads of the catalogue that hand over fingerprints."""

    policy: Literal["activation"]
    catalogue: str = Field(pattern=r"^[a-z0-9-]{1,32}$")


class VerifyQuorum(Strict):
    """Nodes of different owners run the same job, one after the other, none seeing what another made, until more than half of `replicas`
    have handed over equal outputs, byte for byte. These are paid; who handed over something else is not. For jobs that come out the same
    wherever they run."""

    policy: Literal["quorum"]
    replicas: int = Field(default=3, ge=3, le=9)


Verify = Annotated[
    VerifyNone | VerifyMetric | VerifyReplay | VerifyActivation | VerifyQuorum, Field(discriminator="policy")
]


class Retry(Strict):
    max_attempts: int = Field(default=3, ge=1, le=20)  # leases in all, after faults of nodes
    on_failure: int = Field(default=0, ge=0, le=10)  # further tries after the job's own non-zero exit


class Gang(Strict):
    """So many nodes at once, or none: each runs the same command and knows its rank. `resources` and `limits` are of each of them, but
    `limits.max_cost` of all together. Rank 0 writes the checkpoints and hands over the outputs."""

    size: int = Field(ge=2, le=64)
    same_region: bool = False
    # With so many left the others go on when one is lost, from the newest checkpoint, as long as rank 0 is there. None: they all stop.
    min_size: int | None = Field(default=None, ge=1, le=63, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _some_may_go(self) -> Gang:
        if self.min_size is not None and self.min_size >= self.size:
            raise ValueError(
                f"min_size must be less than size ({self.size}): it is how many are enough when others are lost"
            )
        return self


class JobSpec(Strict):
    """One container, or several as `tasks` (torg_protocol.tasks says how they run)."""

    version: Literal[1]
    name: str = Field(default="job", pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    image: str = Field(default=HOST_PYTHON, min_length=1, max_length=512)
    command: tuple[str, ...] = Field(default=(), max_length=256)  # empty: the image's entrypoint
    args: tuple[str, ...] = Field(default=(), max_length=256)  # after the command; without either: the image's own
    workdir: str | None = Field(
        default=None, pattern=r"^(/[^\x00]{0,511}|image)$"
    )  # "image": its own; default: the workspace
    tasks: tuple[Task, ...] = Field(default=(), max_length=MAX_TASKS)  # instead of command, args and workdir
    volumes: Volumes = Field(
        default_factory=dict, max_length=MAX_VOLUMES
    )  # shared by its containers; those that are kept outlive it
    env: dict[str, str] = Field(default_factory=dict, max_length=256)
    workspace: BlobRef | None = None  # tar + zstd, unpacked to the working directory
    inputs: tuple[Input, ...] = Field(default=(), max_length=MAX_INPUTS)  # fetched by the node; all tasks see them
    resources: Resources = Resources()
    limits: Limits = Limits()
    network: Network = "none"  # what it may reach, through the node's proxy
    isolation: Literal["sandbox", "container", "gvisor"] = "sandbox"  # the least that will do
    # As the image's own user (root, of a user namespace, when it names none), writing to all of its files; not as nobody on read-only ones.
    root: bool = False
    checkpoint: Checkpoint = Checkpoint()
    outputs: tuple[str, ...] = Field(
        default=(), max_length=256
    )  # relative to the output directory; must exist at the end
    verify: Verify = VerifyNone()
    retry: Retry = Retry()
    spot: bool = False  # cheaper, at nodes' spot prices; a job that is not may preempt it, with a grace
    lease_grace: DurationMs = Field(default=5 * _MINUTE_MS, ge=2_000, le=_DAY_MS)  # silence after which a node is lost
    placement: Placement = Placement()
    excluded_nodes: tuple[str, ...] = Field(default=(), max_length=256)
    secrets: SealedSecrets | None = None  # files in $TORG_SECRETS_DIR
    registries: dict[RegistryHost, RegistryLogin] = Field(
        default_factory=dict, max_length=MAX_REGISTRIES
    )  # who pulls the images, where not everybody may
    sealed: Sealed | None = None  # workspace, outputs, logs and checkpoints are encrypted
    ports: tuple[Port, ...] = Field(default=(), max_length=MAX_PORTS)  # on which it serves
    gang: Gang | None = None  # on several nodes at once

    @field_validator("env")
    @classmethod
    def _env_names(cls, env: dict[str, str]) -> dict[str, str]:
        return check_env(env)

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
    def _fits_together(self) -> JobSpec:
        if problems := self._problems_between_fields():
            field, message = problems[0]
            raise PydanticCustomError(
                BETWEEN_FIELDS, "{field}: {text}", {"field": field, "text": message, "all": problems}
            )
        return self

    def _problems_between_fields(self) -> list[tuple[str, str]]:
        asked, several = self.resources, bool(self.tasks)
        checks = (
            (
                any(
                    image.startswith(BLOB_IMAGE) and not is_digest_of_bytes(image.removeprefix(BLOB_IMAGE))
                    for image in self.images
                ),
                "image",
                'after "blob:" comes the digest of a stored archive; in a job file write image: file:PATH',
            ),
            (not several and not self.command and self.image == HOST_PYTHON, "command", "is missing"),
            (several and self.command, "tasks", "there is a command too; a job has one or the other"),
            (several and (self.args or self.workdir), "tasks", "args and workdir belong to each task here"),
            (several and self.ports, "ports", "belong to each task here: write them there"),
            (len(self.declared_ports) > MAX_PORTS, "tasks", f"more than {MAX_PORTS} ports in all"),
            (
                several and self.verify.policy != "none",
                "verify",
                "several tasks cannot be verified; write policy: none",
            ),
            (
                self.gang is not None and self.spot,
                "gang",
                "several nodes at once are rented on demand; spot is for one",
            ),
            (self.gang is not None and several, "gang", "a job of several tasks runs on one node"),
            (
                self.gang is not None and self.gang.min_size is not None and not self.checkpoint.enabled,
                "gang.min_size",
                "who is left goes on from the newest checkpoint; write checkpoint: {enabled: true}",
            ),
            (
                self.gang is not None and self.verify.policy != "none",
                "gang",
                "what several nodes did together cannot be verified yet; write verify: {policy: none}",
            ),
            (
                self.written_volumes and self.verify.policy != "none",
                "volumes",
                "a volume would be written before the verdict; write verify: {policy: none}, or mount it read-only",
            ),
            (
                asked.gpus == 0 and (asked.min_vram or asked.min_compute_capability),
                "resources",
                "min_vram and min_compute_capability need gpus: 1 or more",
            ),
            (
                asked.is_share and (asked.gpus != 1 or self.gang is not None or self.spot),
                "resources.gpu_fraction",
                f"{format_cpu_millis(asked.gpu_fraction)} is a part of one GPU, on demand: write gpus: 1, and neither gang nor spot",
            ),
        )
        found = [(field, message) for failed, field, message in (*checks, *self._of_a_quorum()) if failed]
        found += sealed_problems(self) if self.sealed is not None else []
        found += volume_problems(self.volumes, disk_bytes=asked.disk, has_tasks=several)
        found += self._clashing_places() + registry_problems(self.registries, self.images)
        return found + task_problems(self.tasks, self.image, self.volumes, asked.cpus, asked.memory)

    def _clashing_places(self) -> list[tuple[str, str]]:
        """Two things at one path of a container."""
        of_volumes = {volume.path for volume in self.volumes.values() if volume.path is not None}
        places = [*(item.path for item in self.inputs), *of_volumes]
        twice = {path for number, path in enumerate(places) if path in places[:number]}
        found = [("inputs", f"two things at {path}") for path in sorted(twice)]
        return found + [
            (f"tasks.{number}", f"two things at {item.path}: this task's, and the job's")
            for number, task in enumerate(self.tasks)
            for item in (*task.inputs, *task.volumes)
            if item.path in places
        ]

    def _of_a_quorum(self) -> tuple[tuple[bool, str, str], ...]:
        asked = self.verify.policy == "quorum"
        resumed = "a replica must not go on from another's checkpoint; write checkpoint: {enabled: false}"
        return (
            (asked and self.checkpoint.enabled, "verify", resumed),
            (asked and not self.outputs, "outputs", "a quorum compares outputs; name at least one"),
        )

    @property
    def image_archives(self) -> tuple[Digest, ...]:
        """Of the images, those that the client brings along."""
        return tuple(Digest(image.removeprefix(BLOB_IMAGE)) for image in self.images if image.startswith(BLOB_IMAGE))

    @property
    def images(self) -> tuple[str, ...]:
        """All that its containers run, each once."""
        return tuple(dict.fromkeys(task.image or self.image for task in self.tasks)) or (self.image,)

    @property
    def declared_ports(self) -> list[tuple[str | None, Port]]:
        """Each with its task; None: of a job of one command."""
        found: list[tuple[str | None, Port]] = [(None, port) for port in self.ports]
        return found + [(task.name, port) for task in self.tasks for port in task.ports]

    @property
    def kept_volumes(self) -> dict[str, Volume]:
        """Those of the account."""
        return {name: volume for name, volume in self.volumes.items() if volume.keep}

    @property
    def written_volumes(self) -> tuple[str, ...]:
        """Of the account's those that it makes a new generation of."""
        return tuple(name for name, volume in self.volumes.items() if volume.is_written)

    @property
    def nodes_at_once(self) -> int:
        return 1 if self.gang is None else self.gang.size

    @property
    def replicas(self) -> int:
        """How often it may be run at most, beside what is tried again."""
        return self.verify.replicas if isinstance(self.verify, VerifyQuorum) else 1

    def without_secrets(self) -> JobSpec:
        return self.model_copy(update={"secrets": None})

    def without_what_is_sealed(self) -> JobSpec:
        """What two submissions of one job file have in common: what is encrypted looks different each time."""
        unlike = {"secrets": None} | ({"workspace": None, "sealed": None} if self.sealed is not None else {})
        return self.model_copy(update=unlike)

    @model_serializer(mode="wrap")
    def _leave_out_empty(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        return {name: value for name, value in fields.items() if value or name not in _LEFT_OUT_WHEN_EMPTY}

    @property
    def egress_wanted(self) -> EgressKind:
        """What an offer must lend: for the job's own way out, and for the node to fetch what it reads."""
        kind = egress_kind(self.network)
        return "allow" if kind == "none" and any(item.hosts for _, item in self.placed_inputs()) else kind

    def placed_inputs(self) -> list[tuple[str, Input]]:
        """The job's own inputs and those of its tasks, each with its field."""
        own = [(f"inputs.{number}", item) for number, item in enumerate(self.inputs)]
        of_tasks = [
            (f"tasks.{number}.inputs.{place}", item)
            for number, task in enumerate(self.tasks)
            for place, item in enumerate(task.inputs)
        ]
        return own + of_tasks

    def blobs(self) -> list[tuple[str, BlobRef]]:
        """What must be in the store before it can run, each with its field."""
        found = [] if self.workspace is None else [("workspace", self.workspace)]
        blobs = [(field, item) for field, item in self.placed_inputs() if isinstance(item, BlobInput)]
        return found + [(field, BlobRef(digest=item.digest, size_bytes=item.size_bytes)) for field, item in blobs]

    def named_data(self) -> list[tuple[str, str]]:
        """The names that stand for blobs still, each with its field."""
        return [(f"{field}.data", item.data) for field, item in self.placed_inputs() if isinstance(item, DataInput)]

    def with_data(self, blobs: Mapping[str, BlobRef]) -> JobSpec:
        """With the blob in the place of each name."""

        def pinned(inputs: tuple[Input, ...]) -> tuple[Input, ...]:
            return tuple(_pinned(item, blobs) if isinstance(item, DataInput) else item for item in inputs)

        tasks = tuple(task.model_copy(update={"inputs": pinned(task.inputs)}) for task in self.tasks)
        return self.model_copy(update={"inputs": pinned(self.inputs), "tasks": tasks})

    def input_files(self) -> tuple[InputFile, ...]:
        """Of its inputs those whose bytes are fixed."""
        return tuple(
            InputFile(path=item.path, digest=item.digest, name=item.name if isinstance(item, BlobInput) else None)
            for _, item in self.placed_inputs()
            if isinstance(item, BlobInput | UrlInput)
        )

    def secrets_needed(self) -> list[tuple[str, str]]:
        """The secrets that its inputs and registries name, each with its field."""
        logins = [(f"registries.{host}", login) for host, login in self.registries.items()]
        return [
            (f"{field}.{part}", secret)
            for field, item in (*self.placed_inputs(), *logins)
            for part, secret in item.secret_fields
        ]

    def secrets_of_registries(self) -> frozenset[str]:
        """Those that are for its images alone, and not among the files that it sees."""
        of_inputs = {secret for _, item in self.placed_inputs() for _, secret in item.secret_fields}
        named = {secret for login in self.registries.values() for _, secret in login.secret_fields}
        return frozenset(named - of_inputs)

    def wire(self) -> dict[str, Any]:
        """The canonical JSON form: base units, no defaults left out but those of later fields."""
        return self.model_dump(mode="json")

    @property
    def digest(self) -> Digest:
        return digest_of(self.wire())


def _pinned(item: DataInput, blobs: Mapping[str, BlobRef]) -> BlobInput:
    blob = blobs[item.data]
    return BlobInput(
        kind="blob", path=item.path, digest=blob.digest, size_bytes=blob.size_bytes, unpack=True, name=item.data
    )


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
    problems = unkept_problems(raw)
    try:
        spec = JobSpec.model_validate(raw)
        if not problems:
            return spec
    except ValidationError as error:
        problems = problems or problems_of(error.errors(include_url=False), raw, JobSpec)
    first = problems[0]
    raise Invalid(
        f"job spec: {first['field']}: {first['message']}",
        code="spec_invalid",
        field=first["field"],
        value=first["value"],
        hint=first["hint"],
        problems=problems,
    )
