"""One node's settings: config.toml in its data folder, written by `torg-node init`, read once at start."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    IPvAnyNetwork,
    ValidationError,
    model_validator,
)

from torg_chain.network import Network
from torg_chain.wallet import wallet_address
from torg_node.owner_rules import OwnerRules
from torg_node.sweep_plan import SweepPlan
from torg_protocol.errors import Invalid
from torg_protocol.spec_problems import problems_of

CONFIG_NAME = "config.toml"


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path
    marketplace_url: str = ""  # empty: none; the node is only rented directly
    marketplace_key: str = ""  # pinned at init: grants by anybody else are refused
    network: Network  # pinned at init too
    price_per_gpu_hour: int = Field(ge=0)  # base units
    spot_price_per_gpu_hour: int | None = Field(default=None, ge=0)  # of jobs that may be preempted; None: takes none
    payout_address: Annotated[str, AfterValidator(wallet_address)]
    max_unpaid: int = Field(gt=0)  # base units of undecided work at which no more is taken
    slots: int = Field(default=1, ge=1, le=256)
    executor: Literal["auto", "docker", "sandbox"] = "auto"
    engine_socket: Path | None = None
    local_images: tuple[str, ...] = ()  # that no registry knows, and jobs may use all the same
    container_runtime: str | None = None  # of the engine, for all jobs; "runsc" is gVisor
    region: str = "unknown"
    egress: Literal["none", "allow", "open"] = "none"  # the most that a job may reach through this node's proxy
    own_root: bool = True  # whether jobs may be root of a user namespace, where this host was found to keep them in
    egress_bytes_per_s: int = Field(default=12_500_000, ge=0)  # of one lease, both directions together; 0: no limit
    hugging_face_url: HttpUrl = HttpUrl("https://huggingface.co")  # inputs of this kind come from there; or a mirror
    ollama_url: HttpUrl = HttpUrl("https://registry.ollama.ai")
    egress_networks: tuple[IPvAnyNetwork, ...] = ()  # private ones that jobs may reach all the same, such as a mirror's
    min_vault_grace_s: int = 3_600
    land_orders_after_s: int = Field(default=900, ge=0)  # an order that the marketplace has not landed by then, we land
    reservations_path: Path | None = None  # the host's ledger; nodes that share a host share it
    metrics_port: int | None = Field(default=None, ge=0, le=65535)  # on loopback; None: no metrics, 0: any free port
    otlp_endpoint: str | None = None  # of an OpenTelemetry collector, over HTTP; None: no traces
    gpus: tuple[
        str, ...
    ] = ()  # that are lent: vendors, models or UUIDs; empty: all, of a host with both vendors NVIDIA's
    gpu_slices: int = Field(default=1, ge=1, le=100)  # how many leases of one client may share a GPU; 1: none
    heat_rest_after_s: int = Field(default=60, ge=1, le=3600)  # of thermal slowdown until a GPU gets no new lease
    heat_back_after_s: int = Field(default=600, ge=1, le=86_400)  # without any until it gets leases again
    offered_disk_bytes: int = Field(default=20 << 30, gt=0)
    max_image_bytes: int = Field(default=20 << 30, gt=0)  # of an image of an archive or a registry, packed and unpacked
    private_registries: tuple[str, ...] = ()  # "host:port" in private networks, from which jobs' images may be pulled
    cache_bytes: int = Field(default=10 << 30, ge=0)  # of inputs and images that are kept for the next job; 0: none
    keep_history_days: int = Field(default=30, ge=0)  # what the journal knows of leases besides money; 0: for good
    rules: OwnerRules = OwnerRules()
    sweep: SweepPlan | None = None  # of what this node's own key holds, to a cold wallet
    rental_address: str | None = Field(default=None, pattern=r"^[^\s/]+:[0-9]{1,5}$")  # None: not rented directly
    rental_interval_s: int = Field(default=60, ge=1, le=3600)

    @model_validator(mode="before")
    @classmethod
    def _without_what_never_did_anything(cls, raw: Any) -> Any:
        """Config files from before `gpu_slices` hold a switch that no offer told of."""
        return {name: value for name, value in raw.items() if name != "time_slices"} if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _rentals_cost_something(self) -> Settings:
        if self.rental_address is not None and self.price_per_gpu_hour == 0:
            raise ValueError("rental_address needs a price_per_gpu_hour above 0: caps bound nothing that is free")
        return self

    @model_validator(mode="after")
    def _spot_is_cheaper(self) -> Settings:
        if self.spot_price_per_gpu_hour is not None and self.spot_price_per_gpu_hour > self.price_per_gpu_hour:
            raise ValueError(
                f"spot_price_per_gpu_hour is {self.spot_price_per_gpu_hour}, above price_per_gpu_hour: "
                f"set it to {self.price_per_gpu_hour} at most, or leave it out"
            )
        return self

    @property
    def key_path(self) -> Path:
        return self.data / "node.json"

    @property
    def journal_path(self) -> Path:
        return self.data / "journal.sqlite"

    @property
    def host_ledger_path(self) -> Path:
        return self.reservations_path or self.data / "reservations.sqlite"

    @property
    def proofs_path(self) -> Path:
        return self.data / "proofs"

    @property
    def cache_path(self) -> Path:
        return self.data / "cache"

    @property
    def blanks_path(self) -> Path:
        """Empty file systems, of which leases' disks are copies."""
        return self.data / "blanks"

    @property
    def leases_path(self) -> Path:
        return self.data / "leases"


def load_settings(data: Path) -> Settings:
    """Raises Invalid (config_not_found, config_invalid) naming the field."""
    path = data / CONFIG_NAME
    try:
        raw = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise Invalid(
            "this folder holds no node",
            code="config_not_found",
            field="data",
            value=str(data),
            hint="make one: torg-node init --data DIR",
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"the node's config is not TOML: {path}", code="config_invalid", hint=str(error)) from error
    try:
        return Settings(data=data, **raw)
    except ValidationError as error:
        found = problems_of(error.errors(include_url=False), raw, Settings)[0]
        raise Invalid(
            f"{path}: {found['field']}: {found['message']}",
            code="config_invalid",
            field=found["field"],
            value=found["value"],
            hint=found["hint"],
        ) from error


@dataclass(frozen=True, slots=True)
class Problem:
    """`field`: its path with dots; empty when it is of the whole."""

    field: str
    message: str
    value: str


def first_problem(error: ValidationError) -> Problem:
    """For people, who mend one after the other."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    return Problem(field, first["msg"].removeprefix("Value error, "), str(first["input"]))


def write_settings(settings: Settings) -> None:
    """As commented TOML, which its owner may edit; a running node reads it at its next start."""
    network = "\n".join(f"{name} = {_toml(value)}" for name, value in settings.network.model_dump().items())
    text = f"""\
# A Torg node. Edit what you like; it is read at start.
# Empty: no marketplace, the node is only rented directly.
marketplace_url = {_toml(settings.marketplace_url)}
# Pinned when this file was made: grants that this key did not sign are refused.
marketplace_key = {_toml(settings.marketplace_key)}
# In base units of the token per GPU and hour (per slot and hour without a GPU).
price_per_gpu_hour = {settings.price_per_gpu_hour}
# The same for spot jobs: they take what is left, and a job at the full price may preempt them. Without it none are taken.
{_spot_price(settings)}
# The wallet that is paid. It need not, and should not, be a key that is on this machine.
payout_address = {_toml(settings.payout_address)}
# Base units of work that is not decided yet, at which this node takes no more.
max_unpaid = {settings.max_unpaid}
# Jobs at once, as long as they ask for no GPU.
slots = {settings.slots}
# docker, sandbox, or auto: docker when an engine answers, else sandbox.
executor = {_toml(settings.executor)}
region = {_toml(settings.region)}
# A client's vault must stay open at least this long after its owner asks for the rest.
min_vault_grace_s = {settings.min_vault_grace_s}
# An order that pays this node and that the marketplace has not landed after so many seconds, the node lands itself. Fees come
# from the node's key: keep a little SOL on it.
land_orders_after_s = {settings.land_orders_after_s}
offered_disk_bytes = {settings.offered_disk_bytes}
# Inputs and images that are kept for the next job that wants them (torg-node cache); 0 keeps none.
cache_bytes = {settings.cache_bytes}
# How long the journal keeps what was said about leases and their tasks; 0: for good. What they earned, and the proof of it, stays.
keep_history_days = {settings.keep_history_days}
# The largest image that a job may bring along as an archive, or that is pulled for it, packed and unpacked.
max_image_bytes = {settings.max_image_bytes}
"""
    text += _network_lent(settings)
    text += f"""\
# Whether jobs may run as their images want: as root of a user namespace, which is nobody outside, writing to their own copy of its files.
own_root = {str(settings.own_root).lower()}
{_images_lent(settings)}# container_runtime = "runsc"   # gVisor, when the engine has it
"""
    if settings.container_runtime is not None:
        text += f"container_runtime = {_toml(settings.container_runtime)}\n"
    text += """\
# Nodes that share this host (one per marketplace) must name one file here, so that no GPU is promised twice.
# reservations_path = "/var/lib/torg/reservations.sqlite"
"""
    text += _sharing(settings)
    text += "# metrics_port = 9464   # Prometheus metrics, on 127.0.0.1 only\n"
    if settings.metrics_port is not None:
        text += f"metrics_port = {settings.metrics_port}\n"
    if settings.reservations_path is not None:
        text += f"reservations_path = {_toml(str(settings.reservations_path))}\n"
    text += _rental_text(settings)
    if settings.engine_socket is not None:
        text += f"engine_socket = {_toml(str(settings.engine_socket))}\n"
    (settings.data / CONFIG_NAME).write_text(
        f"{text}\n# Where the money is; pinned like the key above.\n[network]\n{network}\n{_rules_text(settings.rules)}{_sweep_text(settings.sweep)}"
    )


def _rules_text(rules: OwnerRules) -> str:
    lines = {
        "quiet_hours": '# Hours (of this host) in which no lease runs: ["22:00-07:00", "sat,sun 09:00-12:00"].',
        "only_when_idle": "# Leases end within seconds when somebody else uses the GPU, and none are taken until it is free for a minute.",
        "allow": "# Kinds of jobs: cpu, gpu, host-python, image, network, service, tasks. Without allow: all that deny does not name.",
        "deny": "",
        "max_duration": '# The longest job that is taken: "6h".',
    }
    text = "\n# What jobs its owner wants, and when.\n[rules]\n"
    written = rules.model_dump(mode="json")
    for name, comment in lines.items():
        value = written[name]
        shown = f"{name} = {_toml_value(value)}" if value is not None else f'# {name} = "6h"'
        text += (f"{comment}\n" if comment else "") + f"{shown}\n"
    return text


def _sweep_text(plan: SweepPlan | None) -> str:
    examples: dict[str, str | int] = {"to": "WALLET", "keep": 0, "at_least": 50_000_000, "every": "7d"}
    written: dict[str, Any] = plan.model_dump(mode="json") if plan else dict.fromkeys(examples)
    lines = [
        f"# {name} = {_toml(example)}" if written[name] is None else f"{name} = {_toml(written[name])}"
        for name, example in examples.items()
    ]
    table = "[sweep]" if plan else "# [sweep]"
    return f"""
# What the node's own key holds goes to a cold wallet, which torg-node sweep --confirm WALLET confirms: all above `keep`, as soon as it is
# `at_least` so much, and `every` so often. In base units. Needs a little SOL on the node's key.
{table}
{chr(10).join(lines)}
"""


def _toml_value(value: bool | str | list[str]) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, list) else _toml(value)


def _rental_text(settings: Settings) -> str:
    address = "" if settings.rental_address is None else f"rental_address = {_toml(settings.rental_address)}\n"
    return f"""\
# Where clients reach this node to rent it directly (torg rent). On loopback they come through an SSH tunnel.
# rental_address = "127.0.0.1:8750"
{address}# How far ahead clients pay and this node works: what either loses when the other walks away.
rental_interval_s = {settings.rental_interval_s}
"""


def _network_lent(settings: Settings) -> str:
    return f"""\
# What jobs may reach through this node: none, allow (what their job file lists), or open (all of the public internet). Your LAN, this
# host and cloud metadata stay out of reach, except for networks that you name here, such as ["192.168.1.7/32"].
egress = {_toml(settings.egress)}
egress_networks = [{", ".join(_toml(str(network)) for network in settings.egress_networks)}]
# Of one lease, both directions together; 0 means no limit.
egress_bytes_per_s = {settings.egress_bytes_per_s}
"""


def _images_lent(settings: Settings) -> str:
    return f"""\
# For the docker executor: images of this host, by name or id, that jobs may use although no registry knows them.
local_images = [{", ".join(map(_toml, settings.local_images))}]
# Registries in private networks, as images name them ("192.168.1.7:5000"), that jobs may use. All others have to be public.
private_registries = [{", ".join(map(_toml, settings.private_registries))}]
"""


def _sharing(settings: Settings) -> str:
    return f"""\
# Which GPUs are lent: "nvidia", "amd", a model or a UUID each, as torg-node doctor names them. Empty: all, and of a host with both vendors
# NVIDIA's. A node offers GPUs of one vendor; a second one with the same reservations_path offers the rest.
gpus = [{", ".join(map(_toml, settings.gpus))}]
# How many leases of one client may share a GPU, each for its part of the price; 1: none. They share its memory too, unprotected: a lease that
# takes all of it makes its siblings fail. Strangers never meet on a GPU.
gpu_slices = {settings.gpu_slices}
# A GPU that slows itself down by heat in at least half of the looks of so many seconds gets no new lease, until no look has shown it hot for so
# many. What runs there goes on.
heat_rest_after_s = {settings.heat_rest_after_s}
heat_back_after_s = {settings.heat_back_after_s}
"""


def _spot_price(settings: Settings) -> str:
    spot = settings.spot_price_per_gpu_hour
    return (
        f"# spot_price_per_gpu_hour = {settings.price_per_gpu_hour // 2}"
        if spot is None
        else f"spot_price_per_gpu_hour = {spot}"
    )


def _toml(value: str | int) -> str:
    return str(value) if isinstance(value, int) else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
