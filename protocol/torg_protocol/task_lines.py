"""Output of several tasks, or of several nodes, as one text: whole lines, each with the name of where it is from before it."""

from __future__ import annotations


def rank_name(rank: int) -> str:
    """A member of a gang, as tasks are named."""
    return f"rank {rank}"


class TaskLines:
    """Pieces go in as they come, whole lines come out. `width`: to which names are filled up."""

    def __init__(self, width: int = 0) -> None:
        self._width = width
        self._unfinished: dict[tuple[str, str], str] = {}

    def take(self, task: str, stream: str, text: str) -> str:
        """The lines that this piece completes, with their ends."""
        *whole, rest = (self._unfinished.get((task, stream), "") + text).split("\n")
        self._unfinished[task, stream] = rest
        return "".join(f"{self._named(task)}{line}\n" for line in whole)

    def rest(self, stream: str | None = None) -> str:
        """Lines that never ended, at the end of it all."""
        return "".join(
            f"{self._named(task)}{text}\n"
            for (task, of), text in self._unfinished.items()
            if text and stream in {None, of}
        )

    def _named(self, task: str) -> str:
        return f"{task:<{self._width}} | "
