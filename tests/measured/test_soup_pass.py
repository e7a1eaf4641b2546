"""What a soup reads and writes in fact is what its operators ask for."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from checkpoint_maker import write_folder

from sandtable_workloads.rlhf.soups import SoupOptions, soup
from sandtable_workloads.rlhf.soups.soup_demand import soup_ops


@pytest.mark.parametrize(("n_models", "dtype", "item_bytes"), [(2, None, 2), (3, "float32", 4)])
def test_counted_bytes_are_those_of_the_plan(
    tmp_path: Path, n_models: int, dtype: str | None, item_bytes: int
) -> None:
    n_params = 3_000_000
    for seed in range(n_models):
        values = np.random.default_rng(seed).normal(size=n_params).astype(np.float16)
        write_folder(tmp_path / f"m{seed}", [{"w": ("F16", values)}])
    made = soup(
        [tmp_path / f"m{seed}" for seed in range(n_models)], tmp_path / "out", options=SoupOptions(dtype=dtype)
    )
    read, adding, written = soup_ops(n_params, n_models, in_bytes=2, out_bytes=item_bytes)
    assert made.n_params == n_params
    assert made.bytes_read == read.bytes_read == adding.bytes_read
    header = 4096  # one page
    assert made.bytes_written == written.bytes_written + header == adding.bytes_written + header
    assert os.stat(tmp_path / "out" / "model.safetensors").st_size == made.bytes_written
