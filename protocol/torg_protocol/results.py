"""Results of a task: values that are cut out of its output when it has ended, for people, for programs and for later tasks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from torg_protocol.strict import Strict

MAX_RESULTS = 64
MAX_VALUES = 1_000  # of one result
MAX_VALUE_CHARS = 4_096
ResultValue = str | tuple[str, ...]


class Result(Strict):
    """The value is group 1 of `regex` where it has one, else the whole match; a list when there is more than one match. Patterns are those
    of the `regex` package (Python's, and lookbehind of any length as in JavaScript), over all lines of the newest run: `^` and `$` match at
    each line. One that does not match gives no value."""

    regex: str = Field(min_length=1, max_length=1024)
    streams: tuple[Literal["stdout", "stderr"], ...] = Field(default=("stdout", "stderr"), min_length=1, max_length=2)

    @field_validator("regex")
    @classmethod
    def _is_pattern(cls, pattern: str) -> str:
        import regex  # slow to load, and few jobs need it

        try:
            regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"not a pattern: {error}") from error
        return pattern


ShortResult = Annotated[
    Result,
    BeforeValidator(
        lambda value: {"regex": value} if isinstance(value, str) else value, json_schema_input_type=Result | str
    ),
]
