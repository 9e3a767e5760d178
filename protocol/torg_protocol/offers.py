"""A node's standing ask: what it has, what it verified about itself, for how much."""

from __future__ import annotations

import operator
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from torg_protocol.documents import Document, Wire
from torg_protocol.ids import NodeId
from torg_protocol.jobspec import WHOLE_GPU_MILLI, JobSpec


def _is_none(value: object) -> bool:
    return value is None


def _is_one(value: object) -> bool:
    return value == 1


class GpuInfo(Wire):
    uuid: str
    model: str
    vram_bytes: int = Field(gt=0)
    compute_capability: str | None = None
    driver: str | None = None
    gfx_target: str | None = Field(default=None, exclude_if=_is_none)  # of an AMD GPU: "gfx90a"
    mig_parent: str | None = None  # for a MIG slice, which is a unit of its own: the GPU that it is a part of


class Inventory(Wire):
    """`source` says where the numbers come from: nvml, amdsmi, cpu (no GPU found), or simulated (tests only)."""

    source: str = Field(pattern=r"^(nvml|amdsmi|cpu|simulated)$")
    gpu_class: str = Field(max_length=64)  # "cpu" when there is no GPU
    gpus: tuple[GpuInfo, ...] = ()
    cpu_model: str = ""
    cpu_millis: int = Field(gt=0)
    memory_bytes: int = Field(gt=0)
    disk_bytes: int = Field(gt=0)


class Offer(Document):
    """Replaces the node's earlier offers when `sequence` is higher. The price is per GPU-hour, or per slot-hour without."""

    KIND: ClassVar[str] = "offer"

    node: NodeId
    sequence: int = Field(ge=1)
    marketplace: str  # public key of the marketplace this offer is for
    price_per_gpu_hour: int = Field(ge=0)  # base units
    slots: int = Field(ge=1, le=256)  # leases at once when a job wants no GPU
    inventory: Inventory
    executor: str
    isolation: tuple[str, ...]  # levels that this host verified by probes
    verified_probes: tuple[str, ...] = ()
    payout_address: str  # wallet whose token account is paid; need not be the node's key
    max_unpaid: int = Field(gt=0)  # base units of unsettled work at which the node stops taking more
    region: str = Field(default="unknown", max_length=32)
    # Left out of the signed form when empty, so that offers from before it verify. "allow": listed destinations; "open": all public.
    egress: tuple[Literal["allow", "open"], ...] = Field(default=(), exclude_if=operator.not_)
    own_root: bool = Field(default=False, exclude_if=operator.not_)  # takes jobs with `root: true`; likewise left out
    # A vault of kind collateral whose session key is the node: what it loses when it cheats. Left out when there is none, as above.
    collateral: str | None = Field(default=None, max_length=44, exclude_if=operator.not_)
    # How many leases of one client may share a GPU; none takes less than that part of it. 1: no GPU is shared. Left out then, as above.
    gpu_slices: int = Field(default=1, ge=1, le=100, exclude_if=_is_one)
    # Of leases that may be preempted (spec: spot); None: it takes no such jobs.
    spot_price_per_gpu_hour: int | None = Field(default=None, ge=0, exclude_if=_is_none)

    @model_validator(mode="after")
    def _spot_is_cheaper(self) -> Offer:
        if self.spot_price_per_gpu_hour is not None and self.spot_price_per_gpu_hour > self.price_per_gpu_hour:
            raise ValueError("spot_price_per_gpu_hour is above price_per_gpu_hour")
        return self

    def price_of(self, spec: JobSpec) -> int | None:
        """What this job pays per hour and billable GPU, of a shared one its part; None: no such jobs here."""
        price = self.spot_price_per_gpu_hour if spec.spot else self.price_per_gpu_hour
        return None if price is None else spec.resources.price_of(price)

    @property
    def least_gpu_milli(self) -> int:
        """The smallest part of a GPU that a job may take here, in thousandths."""
        return WHOLE_GPU_MILLI // self.gpu_slices


class SignedOffer(Wire):
    offer: Offer
    signature: str

    def is_valid(self) -> bool:
        return self.offer.is_signed_by(self.offer.node, self.signature)
