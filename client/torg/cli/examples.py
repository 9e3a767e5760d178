"""Job files that people start from. Each is a valid spec, which a test checks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Example:
    what: str
    text: str


def starter(name: str, gpus: int, schema: Path | None = None) -> str:
    """A commented job file. `name` is made to fit what a job's name may be. `schema`: for editors, by the line that they know."""
    fitting = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:63] or "job"
    gpu_lines = (
        f"  gpus: {gpus}\n  min_vram: 16GiB              # per GPU\n  # gpu_class: NVIDIA L40S|NVIDIA GeForce RTX 4090  # only these kinds; see torg offers\n"
        if gpus
        else "  gpus: 0                      # 1 or more for GPUs; then also: min_vram: 16GiB\n"
    )
    editor_line = f"# yaml-language-server: $schema={schema}\n" if schema is not None else ""
    return editor_line + _STARTER.format(name=fitting, gpus=gpu_lines)


_STARTER = """\
# A job for Torg. Check it with `torg validate`, price it with `torg quote`, run it with `torg submit --wait`.
version: 1
name: "{name}"

# What runs. The working directory is the workspace; the exit code is the job's.
command: [python, train.py]
image: host-python             # what the node has; or an image of a registry, by name or digest
workspace: .                   # this directory, without what .gitignore and .torgignore name; null: no files
env:
  GREETING: hello              # texts only: put numbers and yes/no in quotes

resources:
{gpus}  cpus: 1
  memory: 1GiB
  disk: 1GiB

limits:
  max_duration: 1h             # it is stopped then; you pay useful seconds only
  # max_cost: "0.50"           # never more than this, whatever happens
  # max_price_per_hour: "2.00" # per GPU

# What you want back: paths below $TORG_OUTPUT_DIR, which must exist when it ends. Fetch them with `torg pull`.
outputs: []

# With checkpoints a job goes on elsewhere when its node fails: write them below $TORG_CHECKPOINT_DIR.
checkpoint:
  enabled: false

retry:
  max_attempts: 3              # after faults of nodes; free of charge
  on_failure: 0                # further tries after the job's own failure
"""

EXAMPLES = {
    "hello": Example(
        "the smallest job: one command, no files",
        """\
version: 1
name: hello
command: [python, -c, "print('hello from the market')"]
resources: {memory: 128MiB, disk: 32MiB}
limits: {max_duration: 1m}
""",
    ),
    "outputs": Example(
        "a script with a workspace, whose results come back",
        """\
version: 1
name: report
workspace: .
command: [python, report.py]    # writes to os.environ["TORG_OUTPUT_DIR"]
outputs: [report.csv, plot.png]
resources: {cpus: 2, memory: 2GiB, disk: 1GiB}
limits: {max_duration: 30m, max_cost: "0.25"}
""",
    ),
    "gpu-training": Example(
        "training on one GPU with checkpoints: survives the loss of its node",
        """\
version: 1
name: gpu-training
image: pytorch/pytorch:2.6.0-cuda12.4-cudnn9-runtime
workspace: .
command: [python, train.py, --epochs, "10"]
resources: {gpus: 1, min_vram: 16GiB, cpus: 8, memory: 32GiB, disk: 50GiB, shm: 8GiB}
limits: {max_duration: 12h, max_price_per_hour: "0.60", max_cost: "6.00"}
checkpoint: {enabled: true}     # write them below $TORG_CHECKPOINT_DIR
outputs: [model.safetensors]
retry: {max_attempts: 5}
""",
    ),
    "verified": Example(
        "a catalogue workload whose result is recomputed before anybody is paid",
        """\
# The workspace must be the catalogue's own: workloads/cnn of the Torg repository.
version: 1
name: cnn-digits
workspace: workloads/cnn
command: [python, train.py, --epochs, "30"]
env: {OMP_NUM_THREADS: "1"}
resources: {cpus: 1, memory: 1500MiB, disk: 512MiB}
limits: {max_duration: 15m, max_price_per_hour: "2.00", max_cost: "0.50"}
checkpoint: {enabled: true}
outputs: [model.safetensors, metrics.json, loss.png]
verify: {policy: metric, catalogue: cnn, metric: accuracy, target: "0.965"}
""",
    ),
    "tasks": Example(
        "several containers in one job: order, a shared volume, a result that a later one uses",
        """\
version: 1
name: tasks
volumes: {data: {}}
resources: {memory: 256MiB, disk: 64MiB}
limits: {max_duration: 5m}
tasks:
  - name: prepare
    command: [python, -c, "open('/data/x', 'w').write('1 2 3'); print('rows=3')"]
    volumes: [{volume: data, path: /data}]
    results: {rows: 'rows=([0-9]+)'}
  - name: sum
    command: [python, -c, "import sys; print(sum(map(int, open('/data/x').read().split())), 'of', sys.argv[1])"]
    args: ["${{ tasks.prepare.results.rows }}"]
    depends_on: [prepare]
    volumes: [{volume: data, path: /data, read_only: true}]
""",
    ),
    "patient": Example(
        "waits for a cheap node, for hours if need be",
        """\
version: 1
name: patient
command: [python, -c, "print('it was worth the wait')"]
resources: {memory: 256MiB, disk: 64MiB}
limits: {max_duration: 10m, queue_timeout: 12h, max_price_per_hour: "0.05"}
""",
    ),
}
