"""A catalogue workload for tests of verification."""

from __future__ import annotations

from typing import Any

from tests.support.actors import spec
from tests.support.market import World
from torg_marketplace.ports import CatalogueEntry


def metric_spec(world: World, *, target: str = "0.95", **changes: Any) -> dict[str, Any]:
    """A job whose accuracy the marketplace measures again; its workspace is the catalogue's, and stored."""
    workspace = world.blobs.put(b"the catalogue's workspace")
    world.catalogue.entries["cnn"] = CatalogueEntry(
        name="cnn",
        workspace_digest=workspace.digest,
        metric="accuracy",
        target="0.90",
        required_outputs=("model.safetensors",),
    )
    verify = {"policy": "metric", "catalogue": "cnn", "metric": "accuracy", "target": target}
    members = {"workspace": workspace.model_dump(mode="json"), "verify": verify, "outputs": ["model.safetensors"]}
    return spec(**members | changes)
