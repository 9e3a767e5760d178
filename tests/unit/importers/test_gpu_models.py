"""Short names of GPUs become the names that drivers give, and no others."""

from __future__ import annotations

import pytest

from torg.importers.gpu_models import gpu_class_of, names_of_drivers


@pytest.mark.parametrize(
    ("short", "name"),
    [
        ("rtx4090", "NVIDIA GeForce RTX 4090"),
        ("RTX 3080 Ti", "NVIDIA GeForce RTX 3080 Ti"),
        ("rtx4070tisuper", "NVIDIA GeForce RTX 4070 Ti SUPER"),
        ("gtx1080ti", "NVIDIA GeForce GTX 1080 Ti"),
        ("NVIDIA-L40S", "NVIDIA L40S"),
        ("A6000", "NVIDIA RTX A6000"),
        ("rtxa6000", "NVIDIA RTX A6000"),
        ("RTX6000Ada", "NVIDIA RTX 6000 Ada Generation"),
        ("rtx8000", "Quadro RTX 8000"),
        ("Tesla T4", "Tesla T4"),
        ("MI300X", "AMD Instinct MI300X"),
    ],
)
def test_one_name_for_one_model(short: str, name: str) -> None:
    assert names_of_drivers(short) == [name]


def test_builds_of_a_model_are_all_named() -> None:
    assert gpu_class_of(names_of_drivers("H100")) == "NVIDIA H100 80GB HBM3|NVIDIA H100 PCIe|NVIDIA H100 NVL"


@pytest.mark.parametrize("model", ["", "gpu", "v5litepod-4", "rtx", "h100x"])
def test_what_is_not_known_has_no_names(model: str) -> None:
    assert names_of_drivers(model) == []
