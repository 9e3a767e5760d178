"""Content-addressed transfer: what the store has is not sent, what arrives is checked before it gets its name."""

from __future__ import annotations

from pathlib import Path

from torg.errors import DigestMismatch
from torg.transport import ByteProgress, Transport
from torg_host.archive import sha256_file
from torg_protocol.api import BlobDownload, BlobUpload


class BlobTransfer:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def store(self, digest: str, source: Path, on_bytes: ByteProgress | None = None) -> None:
        """Uploads unless the store has this digest already. Safe to repeat."""
        size = source.stat().st_size
        answer = await self._transport.request(
            "POST", "/v1/blobs", body={"digest": digest, "size_bytes": size}, idempotency_key=digest
        )
        upload = BlobUpload.model_validate(answer)
        if upload.url is not None:
            await self._transport.upload(upload.url, source, on_bytes)
        elif on_bytes:
            on_bytes(size, size)

    async def fetch(self, digest: str, target: Path, on_bytes: ByteProgress | None = None) -> None:
        """Downloads to `target`. Raises DigestMismatch, leaving nothing behind, when the bytes are not those named."""
        if target.is_file() and sha256_file(target) == digest:
            return
        download = BlobDownload.model_validate(await self._transport.request("GET", f"/v1/blobs/{digest}"))
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        try:
            await self._transport.download(download.url, partial, on_bytes)
            if (actual := sha256_file(partial)) != digest:
                raise DigestMismatch(
                    "the blob is not what its name says", field="digest", value=digest, hint=f"got {actual}"
                )
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
