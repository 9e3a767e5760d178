"""Fixtures of the executors' tests."""

from tests.support.engine import engine_socket

__all__ = ["engine_socket"]
