"""GPUs as other platforms name them ("h100", "RTX4090"), and as their drivers do, which is how offers and `resources.gpu_class` name them.

A short name stands for all of its builds. Names of drivers: what `nvidia-smi -L` prints, and amd-smi's market name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_DATA_CENTRE = {
    "a2": ["NVIDIA A2"],
    "a10": ["NVIDIA A10"],
    "a10g": ["NVIDIA A10G"],
    "a16": ["NVIDIA A16"],
    "a30": ["NVIDIA A30"],
    "a40": ["NVIDIA A40"],
    "a100": ["NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"],
    "a100-40gb": ["NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"],
    "a100-80gb": ["NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"],
    "b200": ["NVIDIA B200"],
    "gh200": ["NVIDIA GH200 480GB", "NVIDIA GH200 120GB", "NVIDIA GH200 144G HBM3e"],
    "h100": ["NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H100 NVL"],
    "h100-nvl": ["NVIDIA H100 NVL"],
    "h200": ["NVIDIA H200", "NVIDIA H200 NVL"],
    "k80": ["Tesla K80"],
    "l4": ["NVIDIA L4"],
    "l40": ["NVIDIA L40"],
    "l40s": ["NVIDIA L40S"],
    "m60": ["Tesla M60"],
    "mi210": ["AMD Instinct MI210"],
    "mi250x": ["AMD Instinct MI250X"],
    "mi300a": ["AMD Instinct MI300A"],
    "mi300x": ["AMD Instinct MI300X"],
    "mi325x": ["AMD Instinct MI325X"],
    "p4": ["Tesla P4"],
    "p40": ["Tesla P40"],
    "p100": ["Tesla P100-PCIE-16GB", "Tesla P100-SXM2-16GB", "Tesla P100-PCIE-12GB"],
    "t4": ["Tesla T4"],
    "v100": ["Tesla V100-SXM2-16GB", "Tesla V100-SXM2-32GB", "Tesla V100-SXM3-32GB", "Tesla V100-PCIE-16GB", "Tesla V100-PCIE-32GB"],
}  # fmt: skip
_WORKSTATION = {
    **{f"rtx-a{number}": [f"NVIDIA RTX A{number}"] for number in (2000, 4000, 4500, 5000, 5500, 6000)},
    **{f"rtx-{number}-ada": [f"NVIDIA RTX {number} Ada Generation"] for number in (2000, 4000, 4500, 5000, 5880, 6000)},
    **{f"rtx-{number}": [f"Quadro RTX {number}"] for number in (4000, 5000, 6000, 8000)},
    "rtx-pro-6000": [
        f"NVIDIA RTX PRO 6000 Blackwell {build} Edition" for build in ("Server", "Workstation", "Max-Q Workstation")
    ],
}
_FILLING = re.compile(r"nvidia|amd|geforce|quadro|tesla|instinct|generation|[^a-z0-9]+")
_GEFORCE = re.compile(r"(rtx|gtx)([0-9]{3,4})(ti)?(super)?")


def _squeezed(name: str) -> str:
    return _FILLING.sub("", name.lower())


_BY_NAME = {_squeezed(name): names for table in (_DATA_CENTRE, _WORKSTATION) for name, names in table.items()}
_BY_NAME |= {name.removeprefix("rtx"): names for name, names in _BY_NAME.items() if name.startswith("rtxa")}


def names_of_drivers(model: str) -> list[str]:
    """Empty: a model that is not known here."""
    name = _squeezed(model)
    if name in _BY_NAME:
        return _BY_NAME[name]
    geforce = _GEFORCE.fullmatch(name)
    if geforce is None:
        return []
    series, number, ti, is_super = geforce.groups()
    return [f"NVIDIA GeForce {series.upper()} {number}{' Ti' if ti else ''}{' SUPER' if is_super else ''}"]


def gpu_class_of(names: Iterable[str]) -> str:
    """As `resources.gpu_class` is written."""
    return "|".join(dict.fromkeys(names))
