"""The node agent: proves its hardware, runs leased jobs in containers, reports what was useful, gets paid for it."""

__version__ = "0.1.0"
