"""Tables of volumes that are kept: what is in them, who writes them, and what each job had of them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from torg_marketplace.storage.base import Base, DigestText, Key, Ms
from torg_protocol.jobspec import BlobRef


class VolumeRow(Base):
    """Points to its newest generation. `writer`: the job that makes the next one, from its first grant until it is closed."""

    __tablename__ = "volumes"

    account: Mapped[Key] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    generation: Mapped[int] = mapped_column(default=0)
    digest: Mapped[DigestText | None]
    size_bytes: Mapped[Ms] = mapped_column(default=0)
    made_by: Mapped[Key | None]
    writer: Mapped[Key | None]
    created_at_ms: Mapped[Ms]
    stored_at_ms: Mapped[Ms | None]
    used_at_ms: Mapped[Ms]

    @property
    def blob(self) -> BlobRef | None:
        return (
            None
            if self.digest is None
            else BlobRef.model_validate({"digest": self.digest, "size_bytes": self.size_bytes})
        )


class JobVolumeRow(Base):
    """What a job has of a volume. `draft`: what its next attempt begins with instead of the newest generation. `left`: what it stored
    last, under `left_fence`."""

    __tablename__ = "job_volumes"
    __table_args__ = (Index("ix_job_volumes_account_name", "account", "name"),)

    job_id: Mapped[Key] = mapped_column(ForeignKey("jobs.job_id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    account: Mapped[Key]
    read_only: Mapped[bool]
    read_generation: Mapped[int | None]
    written_generation: Mapped[int | None]
    draft: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # BlobRef
    left: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # BlobRef
    left_fence: Mapped[int] = mapped_column(default=0)  # of the attempt whose end `left` is; 0: of none
    problem: Mapped[str] = mapped_column(Text, default="")
