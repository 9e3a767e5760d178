"""Published packing policies, written anew from their description, to be compared with in the same run.

`best_fit`: 0.5 x CPU left + 0.5 x GPU left after placement, over the cluster's largest CPU and GPU count, least first; inside a
node the fullest GPU that fits. `fgd`: fragmentation gradient descent (Weng et al., USENIX ATC 2023) as its simulator does it:
the distribution of pods is known from the whole trace (95 % most popular kinds), the score is floor(100 x sigmoid(drop of
fragmentation / 1000)), the GPU inside a node is picked by the same score, the first of equals wins. That rounding matters: 1
point on `default`. CPU and memory are hard limits; pods that do not fit are dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.openb.trace import WHOLE_MILLI, Pod, TraceNode, without_times

_POPULAR = 0.95


class Cluster:
    """What is free, one row per node."""

    def __init__(self, nodes: Sequence[TraceNode]) -> None:
        self.cpu = np.array([node.cpu_milli for node in nodes], dtype=np.int64)
        self.memory = np.array([node.memory_mib for node in nodes], dtype=np.int64)
        self.most_cpu, self.most_gpus = int(self.cpu.max()), max(node.gpus for node in nodes)
        self.gpu = np.zeros((len(nodes), self.most_gpus), dtype=np.int64)
        for row, node in enumerate(nodes):
            self.gpu[row, : node.gpus] = WHOLE_MILLI
        self.models = np.array([node.model for node in nodes])

    def fits(self, pod: Pod) -> np.ndarray:
        room = (self.cpu >= pod.cpu_milli) & (self.memory >= pod.memory_mib)
        if pod.models:
            room &= np.isin(self.models, list(pod.models))
        if pod.gpus:
            room &= (self.gpu >= pod.gpu_milli).sum(1) >= pod.gpus
        return np.flatnonzero(room)

    def place(self, row: int, pod: Pod, gpu: int) -> None:
        self.cpu[row] -= pod.cpu_milli
        self.memory[row] -= pod.memory_mib
        if pod.gpus and pod.gpu_milli == WHOLE_MILLI:
            self.gpu[row, np.flatnonzero(self.gpu[row] == WHOLE_MILLI)[: pod.gpus]] = 0
        elif pod.gpus:
            self.gpu[row, gpu] -= pod.gpu_milli


Policy = Callable[[Cluster, Pod, np.ndarray], tuple[int, int]]  # rows that fit -> row, GPU of a fraction


def allocated(nodes: Sequence[TraceNode], arriving: Sequence[Pod], policy: Policy) -> float:
    """Share of all GPU-milli in use when all have arrived."""
    cluster, total = Cluster(nodes), 0
    for pod in arriving:
        rows = cluster.fits(pod)
        if rows.size:
            cluster.place(*_with_pod(policy(cluster, pod, rows), pod))
            total += pod.gpu_milli_in_all
    return total / (sum(node.gpus for node in nodes) * WHOLE_MILLI)


def _with_pod(where: tuple[int, int], pod: Pod) -> tuple[int, Pod, int]:
    return where[0], pod, where[1]


def best_fit(cluster: Cluster, pod: Pod, rows: np.ndarray) -> tuple[int, int]:
    cpu_left = (cluster.cpu[rows] - pod.cpu_milli) / cluster.most_cpu
    gpu_left = (cluster.gpu[rows].sum(1) - pod.gpu_milli_in_all) / (cluster.most_gpus * WHOLE_MILLI)
    row = int(rows[(0.5 * cpu_left + 0.5 * gpu_left).argmin()])
    free = cluster.gpu[row]
    return row, int(np.where(free >= max(pod.gpu_milli, 1), free, np.inf).argmin())


class Fgd:
    """Scores are kept per kind of pod and node until the node changes."""

    def __init__(self, nodes: Sequence[TraceNode], known: Sequence[Pod]) -> None:
        kinds = Counter(without_times(pod) for pod in known)
        typical, share = [], 0
        for pod, count in kinds.most_common():
            typical.append((pod, count))
            share += count
            if share >= _POPULAR * len(known):
                break
        self._share = np.array([count for _, count in typical]) / share
        milli = np.array([max(pod.gpu_milli, 1) for pod, _ in typical])
        self._gpus = np.array([pod.gpus for pod, _ in typical])
        self._cpus = np.array([pod.cpu_milli for pod, _ in typical])
        free = np.arange(WHOLE_MILLI + 1)[:, None]
        self._counts, self._useful = (free >= milli).astype(np.int16), np.where(free >= milli, free, 0)
        will_do = {node.model: [not pod.models or node.model in pod.models for pod, _ in typical] for node in nodes}
        self._will_do = np.array([will_do[node.model] for node in nodes])
        self._version = np.zeros(len(nodes), dtype=np.int64)
        self._seen: dict[Pod, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def __call__(self, cluster: Cluster, pod: Pod, rows: np.ndarray) -> tuple[int, int]:
        version, score, gpu = self._seen.setdefault(
            without_times(pod),
            (
                np.full(self._version.size, -1),
                np.zeros(self._version.size),
                np.zeros(self._version.size, dtype=np.int64),
            ),
        )
        stale = rows[version[rows] != self._version[rows]]
        if stale.size:
            score[stale], gpu[stale] = self._evaluate(cluster, pod, stale)
            version[stale] = self._version[stale]
        row = int(rows[score[rows].argmax()])
        self._version[row] += 1
        return row, int(gpu[row])

    def _evaluate(self, cluster: Cluster, pod: Pod, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        before = self._fragmented(rows, cluster.cpu[rows], cluster.gpu[rows])
        cpu, free = cluster.cpu[rows] - pod.cpu_milli, cluster.gpu[rows]
        if not pod.gpus or pod.gpu_milli == WHOLE_MILLI:
            left = free.copy()
            whole = (free == WHOLE_MILLI) & ((free == WHOLE_MILLI).cumsum(1) <= pod.gpus)
            left[whole] = 0
            return _score(before, self._fragmented(rows, cpu, left)), np.zeros(rows.size, dtype=np.int64)
        best, gpu = np.full(rows.size, -1.0), np.zeros(rows.size, dtype=np.int64)
        for column in range(free.shape[1]):
            some = np.flatnonzero(free[:, column] >= pod.gpu_milli)
            left = free[some].copy()
            left[:, column] -= pod.gpu_milli
            score = _score(before[some], self._fragmented(rows[some], cpu[some], left))
            better = score > best[some]
            best[some[better]], gpu[some[better]] = score[better], column
        return best, gpu

    def _fragmented(self, rows: np.ndarray, cpu: np.ndarray, gpu: np.ndarray) -> np.ndarray:
        """Expected GPU-milli that a pod drawn from the trace cannot use. All of it for pods that want no GPU."""
        satisfied = (self._counts[gpu].sum(1) >= self._gpus) & (cpu[:, None] >= self._cpus) & self._will_do[rows]
        useful = np.where(satisfied & (self._gpus > 0), self._useful[gpu].sum(1), 0)
        return ((gpu.sum(1)[:, None] - useful) * self._share).sum(1)


def _score(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.floor(100 / (1 + np.exp((after - before) / 1000)))
