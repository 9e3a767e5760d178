"""A Python function as a job: pickled on the way there, plain data on the way back.

Code travels by cloudpickle, in a workspace of three files: the call, cloudpickle itself (the node needs no packages), and the runner
below. What comes back was written by a stranger's machine, and unpickling runs code: so results are JSON values, bytes (also inside
lists and mappings) or tuples, which become lists; anything else is refused by the runner with the way out. Pickle is byte code of one Python version in
effect: the runner refuses another minor version than the caller's.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torg.errors import JobFailed
from torg.spec_file import SpecFile, spec_from_mapping
from torg_protocol.api import JobView
from torg_protocol.errors import Invalid
from torg_protocol.states import JobState

RESULT = "torg-result.json"
_VERSION_MISMATCH, _NOT_PLAIN = 96, 97
_LIMIT_BYTES = 256 << 20

_RUNNER = '''\
"""Runs one pickled call and writes its result as plain data. Written by torg; runs on the node."""
import base64, json, os, pickle, sys

wanted = tuple(int(part) for part in sys.argv[1].split("."))
if sys.version_info[:2] != wanted:
    here = ".".join(str(part) for part in sys.version_info[:2])
    print(f"torg: pickled by Python {sys.argv[1]}, this image has {here}", file=sys.stderr)
    sys.exit(96)
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))


def plain(value, where="result"):
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (bytes, bytearray)):
        return {"__bytes__": base64.b64encode(value).decode()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{number}]") for number, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value) and "__bytes__" not in value:
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    print(f"torg: {where} is of type {type(value).__name__}, and no plain data", file=sys.stderr)
    sys.exit(97)


with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "call.pickle"), "rb") as file:
    function, arguments, named = pickle.load(file)
result = plain(function(*arguments, **named))
with open(os.path.join(os.environ["TORG_OUTPUT_DIR"], "torg-result.json"), "w", encoding="utf-8") as file:
    json.dump(result, file)
'''


class FunctionFailed(JobFailed):
    """The function raised, on the node. `remote_traceback` is what it printed."""

    default_code = "function_failed"

    @property
    def remote_traceback(self) -> str:
        return str(self.data.get("traceback", ""))


def function_job(
    folder: Path,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    named: Mapping[str, Any],
    spec: Mapping[str, Any],
) -> SpecFile:
    """A spec whose workspace, made in `folder`, runs the call. `spec`: members of a job spec, such as resources, limits, env.

    Raises Invalid (function_not_callable, function_not_picklable, function_spec_invalid; cloudpickle_missing without the extra `torg[functions]`).
    """
    try:
        import cloudpickle
    except ImportError as error:
        raise Invalid(
            "functions travel by cloudpickle", code="cloudpickle_missing", hint="pip install 'torg[functions]'"
        ) from error
    if not callable(function):
        raise Invalid(
            "not a function",
            code="function_not_callable",
            field="function",
            value=repr(function)[:80],
            hint="give the function and its arguments apart: client.run(train, 3), not client.run(train(3))",
        )
    if taken := sorted({"command", "workspace", "version"} & spec.keys()):
        raise Invalid(
            "the function is the command, and its workspace is made here",
            code="function_spec_invalid",
            field=f"spec.{taken[0]}",
            hint="leave it out; to run files, submit a job",
        )
    try:
        call = cloudpickle.dumps((function, arguments, dict(named)))
    except Exception as error:
        raise Invalid(
            f"this call cannot be pickled: {error}",
            code="function_not_picklable",
            field="function",
            value=getattr(function, "__qualname__", repr(function)),
            hint="open files, locks and connections cannot travel: make them inside of the function",
        ) from error
    (folder / "call.pickle").write_bytes(call)
    (folder / "torg_function.py").write_text(_RUNNER)
    shutil.copytree(
        Path(cloudpickle.__file__).parent, folder / "cloudpickle", ignore=shutil.ignore_patterns("__pycache__")
    )
    name = re.sub(r"[^a-z0-9._-]+", "-", getattr(function, "__name__", "function").lower()).strip("-._") or "function"
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    raw = {
        "name": name[:63],
        **spec,
        "version": 1,
        "command": ["python", "torg_function.py", version],
        "workspace": ".",
        "outputs": [*spec.get("outputs", ()), RESULT],
    }
    return spec_from_mapping(raw, base=folder)


def failure_of(job: JobView, stderr: str) -> JobFailed:
    """Why a function's job did not succeed, as the error that `run` raises."""
    exit_code = job.leases[-1].exit_code if job.leases else None
    details: dict[str, Any] = {"job_id": job.job_id, "reason": str(job.reason)}
    last = stderr.strip().splitlines()[-1].removeprefix("torg: ") if stderr.strip() else job.detail
    match exit_code:
        case code if code == _VERSION_MISMATCH:
            hint = "run with that Python here, or name an image that has yours: spec={'image': ...}"
            return FunctionFailed(last, code="python_version_mismatch", field="spec.image", hint=hint, **details)
        case code if code == _NOT_PLAIN:
            hint = (
                "return JSON values or bytes; write anything else to a file in TORG_OUTPUT_DIR and name it in outputs"
            )
            return FunctionFailed(last, code="function_result_not_plain", field="function", hint=hint, **details)
        case code if code and job.state is JobState.FAILED:
            return FunctionFailed(f"{job.name} raised: {last}", traceback=stderr, **details)
        case _:
            return JobFailed(f"{job.name}: {job.state}", code="job_failed", detail=job.detail, **details)


def read_result(file: Path) -> Any:
    """The function's value. Raises Invalid `function_result_malformed`: the node wrote something else."""
    try:
        if file.stat().st_size > _LIMIT_BYTES:
            raise ValueError(f"more than {_LIMIT_BYTES} bytes")
        return json.loads(file.read_text(encoding="utf-8"), object_hook=_restored)
    except (ValueError, TypeError, RecursionError) as error:
        raise Invalid(f"not a function's result: {error}", code="function_result_malformed", field=RESULT) from error


def _restored(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["__bytes__"], validate=True) if value.keys() == {"__bytes__"} else value
