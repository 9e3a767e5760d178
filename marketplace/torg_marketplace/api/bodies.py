"""How bodies of requests come in: a MiB at a time.

uvicorn wakes the application for each packet that arrived, which is tens of kilobytes; a blob of four megabytes then takes a hundred turns of the
event loop through every layer of the application, and these took longer than hashing and writing it.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

GATHERED_BYTES = 1 << 20  # in memory of each connection, and what one packet brings


class GatheringProtocol(HttpToolsProtocol):
    def on_body(self, body: bytes) -> None:
        """The end of a body wakes the application in any case, and so does a connection that breaks."""
        if (self.parser.should_upgrade() and self._should_upgrade()) or self.cycle.response_complete:
            return
        self.cycle.body += body
        if len(self.cycle.body) >= GATHERED_BYTES:
            self.flow.pause_reading()
            self.cycle.message_event.set()
