"""Options that say what a container is like, of commands that start one: `run` on the market, `rent` on a node."""

from __future__ import annotations

import click

IMAGE = click.option(
    "--image",
    metavar="IMAGE",
    default="host-python",
    show_default=True,
    help="Container image (NAME:TAG, or file:image.tar), or host-python: the node's own Python.",
)
MAX_DURATION = click.option(
    "--max-duration",
    metavar="DURATION",
    default="1h",
    show_default=True,
    help="The longest that it may run, for example 30m or 2h; it is stopped then.",
)
GPUS = click.option("--gpus", default=0, show_default=True, type=click.IntRange(0, 64), help="How many GPUs it needs.")
