"""What eager PyTorch launches on a GPU for the parts of a transformer between its products.

As `sandtable_kernels.pytorch.eager`, which counts for a CPU; here kernels of several types and their strides are told
apart, since those without vector loads take a multiprocessor longer than their bytes.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from sandtable import yaml_files
from sandtable_kernels.pytorch.eager import Traffic

WIDE_BYTES = 4.0


@lru_cache(maxsize=1)
def _counts() -> dict[str, Any]:
    """Return what the file beside this one says of each composite."""
    found: dict[str, Any] = yaml_files.plain(yaml_files.read_yaml(Path(__file__).with_suffix(".yaml")))
    return found


def traffic(
    composite: str, n_elements: float, item_bytes: float, *, backward: bool = False, autocast: bool = False
) -> Traffic:
    """Return what a composite over ``n_elements`` of ``item_bytes`` moves and launches; nothing changes float32."""
    counts = _counts()["autocast" if autocast else "composites"][composite]
    kernels = [
        kernel
        for kernel in counts["backward" if backward else "forward"]
        if item_bytes < WIDE_BYTES or not {"own", "wide"} <= kernel.keys()
    ]
    passes = sum(kernel.get("own", 0) * item_bytes + kernel.get("wide", 0) * WIDE_BYTES for kernel in kernels)
    special = sum(kernel.get("special", 0) for kernel in kernels)
    return Traffic(passes * n_elements, len(kernels), special * n_elements)
