"""The words that client, node and marketplace share: ids, money, states, job spec, messages, receipts, signatures.

Pure values and functions: no I/O, no event loop, no clock. `PROTOCOL_VERSION` is the wire's own version, see `versions`.
"""

from torg_protocol.versions import PROTOCOL_VERSION

__all__ = ["PROTOCOL_VERSION"]
