"""Every end-to-end test is followed by a look for what it left on this host."""

from tests.support.leaks import leaves_nothing, module_leaves_nothing, own_temp

__all__ = ["leaves_nothing", "module_leaves_nothing", "own_temp"]
