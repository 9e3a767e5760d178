"""What a running lease tells besides its events: progress and live logs. Best effort, bounded, never a reason to fail."""

from __future__ import annotations
