"""The butterfly's kernels of every size of tile, compiled for GPUs that need not be here: do they fit?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from triton_compiler import KERNELS, SHARED_BYTES, compiled_for

from sandtable_kernels.cuda.butterfly_passes import passes_of
from sandtable_kernels.structured.butterfly_layout import ButterflyLayout

pytestmark = pytest.mark.skipif(
    os.environ.get("SANDTABLE_BENCH") != "1", reason="a benchmark: set SANDTABLE_BENCH=1"
)


@pytest.mark.parametrize("capability", SHARED_BYTES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_of_every_tile_fit_a_gpu(
    name: str, dtype: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for n, base in ((4096, 4), (8192, 4), (4096, 16)):
        layout = ButterflyLayout(n, n, base)
        for index in range(len(passes_of(layout))):
            compiled = compiled_for(capability, name, layout, index, dtype)
            assert compiled.metadata.shared <= SHARED_BYTES[capability]
