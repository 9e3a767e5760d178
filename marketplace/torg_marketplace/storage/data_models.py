"""Tables of the names that accounts give to blobs, and of blobs that are about to be deleted."""

from __future__ import annotations

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from torg_marketplace.storage.base import Base, DigestText, Key, Ms


class DataRow(Base):
    """A name points to one blob at a time; naming it anew moves it."""

    __tablename__ = "data_names"

    account: Mapped[Key] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    digest: Mapped[DigestText]
    size_bytes: Mapped[Ms]
    named_at_ms: Mapped[Ms]
    used_at_ms: Mapped[Ms]  # named, or read by a job that was submitted then


class LeavingBlobRow(Base):
    """Its bytes are being deleted: see flow/leaving.py."""

    __tablename__ = "leaving_blobs"

    digest: Mapped[DigestText] = mapped_column(primary_key=True)
