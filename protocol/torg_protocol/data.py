"""Bodies of the REST API about named data: what an account keeps in the store beyond one job."""

from __future__ import annotations

from pydantic import Field

from torg_protocol.cases import QuotaView
from torg_protocol.documents import View, Wire
from torg_protocol.ids import DIGEST, Digest

DATA_NAME = r"^[a-z0-9][a-z0-9._-]{0,31}$"
MAX_NAMES_PER_ACCOUNT = 1_000


class DataRequest(Wire):
    """PUT /v1/data/{name}. The blob was uploaded before: a directory tree as tar + zstd, as workspaces are."""

    digest: Digest = Field(pattern=DIGEST)
    size_bytes: int = Field(ge=0, le=2**63 - 1)


class DataView(View):
    name: str
    digest: Digest
    size_bytes: int  # as it is stored
    named_at_ms: int
    expires_at_ms: int | None = None  # when the name goes unless a job reads it before; null: never


class DataPage(View):
    """GET /v1/data"""

    data: tuple[DataView, ...]
    next_cursor: str | None = None
    total_bytes: int  # of all names of the account; a blob with two names counts twice
    stored_bytes: int = (
        0  # all that the account has sent and the store still has, workspaces of jobs too; pieces count once
    )
    kept: QuotaView | None = None  # names and volumes together, against what the account may keep


class InputFile(Wire):
    """What a job reads at `path`, for good: named by its content. `name`: of the account's data, when it was asked for so."""

    path: str
    digest: Digest
    name: str | None = None
