"""Fixtures of the executors' tests."""

from tests.support.engine import engine_socket
from tests.support.leaks import leaves_nothing, module_leaves_nothing, own_temp

__all__ = ["engine_socket", "leaves_nothing", "module_leaves_nothing", "own_temp"]
