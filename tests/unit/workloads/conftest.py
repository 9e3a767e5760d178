from __future__ import annotations

from tests.support.cnn import uninterrupted, workspace

__all__ = ["uninterrupted", "workspace"]
