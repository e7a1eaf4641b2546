"""What a soup reads and writes in fact is what its operators ask for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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


def test_the_process_takes_no_more_than_it_is_given(tmp_path: Path) -> None:
    pytest.importorskip("numba", reason="sums are compiled")
    values = np.ones(16 << 20, np.float16)
    for name in ("a", "b"):
        write_folder(tmp_path / name, [{"w": ("F16", values)}])
    command = [
        sys.executable,
        "-m",
        "sandtable",
        "soup",
        "a",
        "b",
        "-o",
        "out",
        "--memory",
        "240 MB",
        "--format",
        "json",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = {row["what"]: row["value"] for row in json.loads(done.stdout)["rows"]}
    # threads and what the readers compile come on top of what was counted
    assert found["memory of the process"] < 1.1 * 240e6
    assert found["buffers"] > 2e6
