"""Which signatures were used and how much each caller has asked, counted in PostgreSQL by all processes of a marketplace together.

One statement does both, and it is one for all requests that came while the one before was under way: the more there is to do, the less each
costs. Its connection does not wait for the disk: signatures of the last moment before a crash of the server could be used again, with
effects that idempotency keys and states bound. Buckets are forgotten by a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field

import asyncpg
from sqlalchemy import make_url

from torg_marketplace.rules.limits import Quota, quota_of, refusal
from torg_marketplace.storage.nonces import replayed
from torg_marketplace.storage.silence import LOST, connection_class
from torg_protocol.errors import TorgError, Unavailable
from torg_protocol.httpsig import MAX_CLOCK_SKEW_S, VerifiedSignature

log = logging.getLogger(__name__)
_ANSWER_WITHIN_S = 10.0
_FORGET_EVERY_S = 300.0
_FULL_AFTER_S = 60.0  # whatever was taken of a bucket
_TOGETHER = 500  # requests in one statement
# Rows are written in the order of their keys, signatures before callers: two processes never wait for each other.
_ADMIT = """
WITH used AS (
  INSERT INTO request_nonces (key, nonce, created_s)
  SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]) AS given (key, nonce, created_s) ORDER BY key, nonce
  ON CONFLICT DO NOTHING RETURNING key, nonce
), asked AS (
  SELECT caller, count(*) AS requests
  FROM unnest($4::text[], $5::text[], $6::text[]) AS given (caller, key, nonce) LEFT JOIN used USING (key, nonce)
  WHERE given.key IS NULL OR used.key IS NOT NULL GROUP BY caller
), counted AS (
  INSERT INTO request_buckets AS bucket (caller, tokens, granted, counted_at_s)
  SELECT caller, $7 - least(requests, $7), least(requests, $7), extract(epoch FROM now()) FROM asked ORDER BY caller
  ON CONFLICT (caller) DO UPDATE SET (tokens, granted, counted_at_s) = (
    SELECT full_up - least(excluded.granted, floor(full_up)), least(excluded.granted, floor(full_up)), at_s
    FROM (SELECT greatest(excluded.counted_at_s, bucket.counted_at_s) AS at_s) AS now_or_later,
      LATERAL (SELECT least($7, bucket.tokens + (at_s - bucket.counted_at_s) * $7 / 60) AS full_up) AS refilled
  ) RETURNING caller, tokens, granted
)
SELECT key, nonce, NULL AS caller, NULL AS tokens, NULL AS granted FROM used
UNION ALL SELECT NULL, NULL, caller, tokens, granted FROM counted
"""


@dataclass(eq=False, slots=True)
class _Request:
    signature: VerifiedSignature | None
    caller: str | None
    answer: asyncio.Future[Quota | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def say(self, answer: Quota | TorgError | None) -> None:
        if self.answer.done():  # nobody waits any more
            return
        if isinstance(answer, TorgError):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)


class SharedAdmission:
    """`per_minute` 0: nobody is limited. See `ports.Admission`."""

    def __init__(self, database_url: str, per_minute: int) -> None:
        """`database_url` as SQLAlchemy wants it. Connects at the first request."""
        self._dsn = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._per_minute = per_minute
        self._connection: asyncpg.Connection | None = None
        self._waiting: list[_Request] = []
        self._at_work: asyncio.Task[None] | None = None
        self._forgot_s = time.monotonic()

    async def admit(self, *, signature: VerifiedSignature | None = None, caller: str | None = None) -> Quota | None:
        request = _Request(signature, caller if self._per_minute else None)
        if request.signature is None and request.caller is None:
            return None
        self._waiting.append(request)
        if self._at_work is None or self._at_work.done():
            self._at_work = asyncio.create_task(self._work())
        return await request.answer

    async def aclose(self) -> None:
        if self._at_work is not None:
            self._at_work.cancel()
            await asyncio.gather(self._at_work, return_exceptions=True)
        await self._hang_up()

    async def _work(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_TOGETHER], self._waiting[_TOGETHER:]
            try:
                await self._answer(batch)
            except LOST as error:
                log.warning("requests cannot be counted: %s", str(error) or type(error).__name__)
                await self._hang_up()
                self._refuse(batch)
            except BaseException:
                self._refuse(batch)
                raise

    def _refuse(self, batch: list[_Request]) -> None:
        for request in batch:
            request.say(
                Unavailable("the database does not answer", code="database_unavailable", hint="try again in a moment")
            )

    async def _answer(self, batch: list[_Request]) -> None:
        signed: dict[tuple[str, str], _Request] = {}
        for request in batch:
            if (signature := request.signature) is not None:
                first = signed.setdefault((signature.key, signature.nonce), request)
                if first is not request:
                    request.say(replayed(signature.nonce))
        asking = [request for request in batch if not request.answer.done()]
        signatures = [request.signature for request in asking if request.signature is not None]
        counting = [(request.caller, request.signature) for request in asking if request.caller is not None]
        connection = await self._connected()
        rows = await connection.fetch(
            _ADMIT,
            [signature.key for signature in signatures],
            [signature.nonce for signature in signatures],
            [signature.created_s for signature in signatures],
            [caller for caller, _ in counting],
            [signature and signature.key for _, signature in counting],
            [signature and signature.nonce for _, signature in counting],
            float(self._per_minute),
            timeout=_ANSWER_WITHIN_S,
        )
        used = {(row["key"], row["nonce"]) for row in rows if row["key"] is not None}
        left = {row["caller"]: (row["tokens"], row["granted"]) for row in rows if row["caller"] is not None}
        for request in asking:
            signature = request.signature
            if signature is not None and (signature.key, signature.nonce) not in used:
                request.say(replayed(signature.nonce))
            elif request.caller is None:
                request.say(None)
            else:
                tokens, granted = left[request.caller]
                left[request.caller] = tokens, granted - 1
                refused = granted < 1
                request.say(refusal(tokens, self._per_minute) if refused else quota_of(tokens, self._per_minute))

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(
                self._dsn,
                timeout=_ANSWER_WITHIN_S,
                connection_class=connection_class(_ANSWER_WITHIN_S),
                server_settings={"synchronous_commit": "off", "application_name": "torg admission"},
            )
        if time.monotonic() - self._forgot_s > _FORGET_EVERY_S:
            self._forgot_s = time.monotonic()
            await self._forget(self._connection)
        return self._connection

    async def _forget(self, connection: asyncpg.Connection) -> None:
        """Signatures that are too old to be believed, and buckets that have long been full."""
        now_s = await connection.fetchval("SELECT extract(epoch FROM now())::float8")
        await connection.execute("DELETE FROM request_nonces WHERE created_s < $1", int(now_s) - 2 * MAX_CLOCK_SKEW_S)
        await connection.execute("DELETE FROM request_buckets WHERE counted_at_s < $1", now_s - _FULL_AFTER_S)

    async def _hang_up(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(Exception):
                await self._connection.close(timeout=1)
            self._connection = None
