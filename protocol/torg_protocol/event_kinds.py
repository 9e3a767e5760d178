"""Kinds of events of a job: those that are written down, and what a reader is told besides."""

from __future__ import annotations

from typing import Literal

WrittenKind = Literal[
    "job", "lease", "task", "preparing", "progress", "ports", "checkpoint", "volume", "log", "receipt"
]
EventKind = Literal[WrittenKind, "removed"]  # removed: some of what comes after the id that was asked for is not kept
