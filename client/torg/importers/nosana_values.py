"""What an operation reads from elsewhere and hands on: results and literals as expressions, resources as inputs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torg.importers.nosana_literals import PAIRS, SPREAD
from torg.importers.nosana_schema import (
    LITERAL,
    HuggingFaceResource,
    LogResult,
    OllamaResource,
    RunOperation,
    S3Resource,
)
from torg.importers.translation import Drops

_FACTS = {"job": "job.id", "host": "node.id", "project": "client.id"}
_RESULT = re.compile(r"%%ops\.([^%]+)\.results\.([^%.]+)%%")
_FACT = re.compile(r"%%globals?\.([a-z_]+)%%")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}")
_GROUPED = re.compile(r"(?<!\\)\((?!\?)|\(\?<(?![=!])")
_REFERS_BACK = re.compile(r"\\[1-9]|\\k<")
_NOT_HERE = "known only while the job runs, and nothing fills it in here"


def results_wanted(operation: RunOperation) -> set[str]:
    """The ids of operations whose results stand in this one's words or variables."""
    return {match.group(1) for _, text in _texts(operation) for match in _RESULT.finditer(text)}


def has_literals(operation: RunOperation) -> bool:
    return any(LITERAL.search(text) for _, text in _texts(operation))


def _texts(operation: RunOperation) -> Iterator[tuple[str, str]]:
    args = operation.args
    for key, words in (("cmd", args.cmd), ("entrypoint", args.entrypoint)):
        yield from ((key, word) for word in ((words,) if isinstance(words, str) else words or ()))
    yield from (("env", value) for value in args.env.values())


def with_expressions(
    container: dict[str, Any], places: Mapping[str, str], names: Mapping[str, str], drops: Drops
) -> dict[str, Any]:
    """`container`: its fields by our names. A literal that has an expression of ours becomes it; others are lost and stay as they are."""
    filled = dict(container)
    for key in ("command", "args"):
        if key in filled:
            filled[key] = [_expressed(word, places[key], names, drops) for word in filled[key]]
    if "env" in filled:
        env = dict(filled["env"])
        for name, value in list(env.items()):
            path = places.get(f"env.{name}", places["env"])
            if name in (SPREAD, PAIRS):
                drops.lose(path, env.pop(name), "variables are named before the job runs")
            else:
                env[name] = _expressed(value, path, names, drops)
        filled["env"] = env
    if LITERAL.search(str(filled["image"])):
        drops.lose(
            places["image"],
            filled["image"],
            "an image is named before the job runs, so that nodes know whether they have it",
        )
    return filled


def _expressed(text: str, path: str, names: Mapping[str, str], drops: Drops) -> str:
    def ours(match: re.Match[str]) -> str:
        literal = match.group()
        if (result := _RESULT.fullmatch(literal)) and result.group(1) in names:
            return f"${{{{ tasks.{names[result.group(1)]}.results.{result.group(2)} }}}}"
        if (fact := _FACT.fullmatch(literal)) and fact.group(1) in _FACTS:
            return f"${{{{ {_FACTS[fact.group(1)]} }}}}"
        drops.lose(path, literal, _NOT_HERE)
        return literal

    if "${{" in text:
        drops.lose(path, "${{", "what stands in ${{ }} was a text there, and is an expression here")
    return LITERAL.sub(ours, text)


def results_of(operation: RunOperation, path: str, drops: Drops) -> dict[str, Any]:
    """Theirs is the whole match, ours the first group where there is one: so a pattern with groups becomes one group."""
    found: dict[str, Any] = {}
    for key, result in operation.results.items():
        here = f"{path}.{key}"
        streams = [stream for stream in ("stdout", "stderr") if stream in result.log_types]
        if not _KEY.fullmatch(key):
            drops.lose(here, key, "not a name that an expression can have: letters, digits, _ and -")
        elif not streams:
            drops.lose(here, list(result.log_types), "results come from stdout and stderr")
        elif problem := _pattern_problem(result):
            drops.remark(here, result.regex, f"it never matches there either: {problem}")
        else:
            grouped = _GROUPED.search(result.regex) and not _REFERS_BACK.search(result.regex)
            if unread := [stream for stream in result.log_types if stream not in streams]:
                drops.lose(f"{here}.logType", unread, "results come from stdout and stderr")
            found[key] = {"regex": f"({result.regex})" if grouped else result.regex, "streams": streams}
    return found


def _pattern_problem(result: LogResult) -> str | None:
    import regex

    try:
        regex.compile(result.regex)
    except regex.error as error:
        return str(error)
    return None


# Where programs look below root's home, which a job's user cannot enter: the place that it is given instead, and the variable that says so.
_MOVED = {
    "/root/.ollama/models": ("/ollama-models", "OLLAMA_MODELS"),
    "/root/.cache/huggingface": ("/huggingface", "HF_HOME"),
    "/root/.cache/huggingface/hub": ("/huggingface-hub", "HF_HUB_CACHE"),
}


def inputs_of(
    operation: RunOperation, path: str, drops: Drops
) -> tuple[list[dict[str, Any]], dict[str, str], dict[str, str]]:
    """Inputs, variables that make the image's program look for them, and where each input came from."""
    inputs: list[tuple[dict[str, Any], str]] = []
    env: dict[str, str] = {}
    for number, resource in enumerate(operation.args.resources):
        here, target = f"{path}.{number}", ""
        if isinstance(resource, HuggingFaceResource | OllamaResource | S3Resource):
            target, variable = _place(resource.target, here, drops)
            env |= {variable: target} if variable else {}
        match resource:
            case HuggingFaceResource():
                if resource.access_token is not None:
                    drops.lose(
                        f"{here}.accessToken",
                        "...",
                        "only what everybody may read is fetched; a token would be open to the node",
                    )
                said = {"revision": resource.revision, "files": list(resource.files)}
                inputs.append(({"kind": "huggingface", "path": target, "repo": resource.repo, **_said(said)}, here))
            case OllamaResource():
                inputs.append(({"kind": "ollama", "path": target, "model": resource.model}, here))
                env["OLLAMA_MODELS"] = target
            case S3Resource():
                inputs += ((bucket, here) for bucket in _buckets(resource, target, here, drops))
            case str():
                pass  # the marker: there is something, so nothing is removed
            case _:
                drops.lose(here, resource.spread, "inputs are named before the job runs, so that a node can fetch them")
    kept = _apart(inputs, drops)
    origins = {f"inputs.{number}": place for number, (_, place) in enumerate(kept)}
    origins |= {f"inputs.{number}.path": f"{place}.target" for number, (_, place) in enumerate(kept)}
    return [item for item, _ in kept], env, origins


def _apart(inputs: list[tuple[dict[str, Any], str]], drops: Drops) -> list[tuple[dict[str, Any], str]]:
    """The first at each place."""
    kept: dict[str, tuple[dict[str, Any], str]] = {}
    for item, here in inputs:
        if kept.setdefault(item["path"], (item, here))[0] is not item:
            what = item.get("repo") or item.get("url") or item.get("model") or item["path"]
            drops.lose(here, what, f"there is something else at {item['path']} already")
    return list(kept.values())


def _place(target: str, path: str, drops: Drops) -> tuple[str, str | None]:
    """Where the job sees it, and the variable through which its program finds it there."""
    plain = target.rstrip("/") or "/"
    if plain in _MOVED:
        moved, variable = _MOVED[plain]
        drops.remark(
            f"{path}.target", plain, f"a job's user cannot enter /root: it is at {moved}, and {variable} says so"
        )
        return moved, variable
    if plain.startswith("/root/"):
        drops.remark(
            f"{path}.target", plain, "a job does not run as root: where the image closes /root, it cannot be read there"
        )
    return plain, None


def _buckets(resource: S3Resource, target: str, path: str, drops: Drops) -> Iterator[dict[str, Any]]:
    if resource.iam is not None:
        drops.lose(f"{path}.IAM", "...", "only what everybody may read is fetched; a key would be open to the node")
    if resource.allow_write:
        drops.lose(f"{path}.allowWrite", True, "inputs are read-only; write to $TORG_OUTPUT_DIR")
    places = [(f"{path}.buckets.{number}.url", item.url, item.files) for number, item in enumerate(resource.buckets)]
    if not places:
        places = [
            (f"{path}.{'bucket' if resource.bucket else 'url'}", resource.bucket or resource.url or "", resource.files)
        ]
    for where, url, files in places:
        if "://" not in url:
            url = f"s3://{url}"
        if not url.startswith("s3://"):
            drops.lose(where, url, "a bucket is s3://name/prefix; a file over https is an input with its digest")
            continue
        endpoint = {"endpoint": resource.url} if resource.url and resource.bucket else {}
        yield {"kind": "s3", "path": target, "url": url, **endpoint, **_said({"files": list(files)})}


def _said(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}
