"""Jobs that an API key submits: no wallet, no vault, no caps; the operator's credit pays, as far as the account and the key have some.

Custodial: see docs/explanation/money.md. What protects the caller here is the spec's own limits and the key's spend cap.
"""

from __future__ import annotations

from torg.submission import Quotes, same_job, unanswered
from torg_protocol.api import JobView, Quote
from torg_protocol.errors import TorgError, Unavailable
from torg_protocol.jobspec import JobSpec


class CreditSubmission(Quotes):
    def knows(self, key: str) -> bool:
        del key
        return False

    async def already_submitted(self, spec: JobSpec, key: str) -> None:
        """Nothing is kept here: the marketplace says which job a repeated key stands for."""
        del spec, key

    async def submit(self, spec: JobSpec, quote: Quote, key: str) -> JobView:
        """Raises what the marketplace answers, Conflict `credit_exhausted` among it; Unavailable `submission_unanswered`."""
        body = {"spec": spec.wire(), "quote_id": quote.quote_id}
        try:
            return await self._transport.ask(JobView, "POST", "/v1/jobs", body=body, idempotency_key=key)
        except TorgError as error:
            if isinstance(error, Unavailable) or not 400 <= error.status < 500:
                raise unanswered(error, key) from error
            if error.code != "idempotency_key_reused" or not isinstance(error.data.get("job_id"), str):
                raise
            return await same_job(self._transport, error.data["job_id"], spec, key)
