"""Tables of what all API processes count together; see shared_admission.py. A marketplace on SQLite is one process and leaves them empty."""

from __future__ import annotations

from sqlalchemy import Float, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from torg_marketplace.storage.base import Base, Key, Ms


class RequestNonceRow(Base):
    """A signature that was used."""

    __tablename__ = "request_nonces"

    key: Mapped[Key] = mapped_column(primary_key=True)
    nonce: Mapped[str] = mapped_column(String(128), primary_key=True)
    created_s: Mapped[Ms]


class RequestBucketRow(Base):
    """What a caller has left to ask. `granted`: of the newest statement's requests. Unlogged in PostgreSQL."""

    __tablename__ = "request_buckets"

    caller: Mapped[str] = mapped_column(String(128), primary_key=True)
    tokens: Mapped[float] = mapped_column(Float(53))
    granted: Mapped[int] = mapped_column(Integer)
    counted_at_s: Mapped[float] = mapped_column(Float(53))
