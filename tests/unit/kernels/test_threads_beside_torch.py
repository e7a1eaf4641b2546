"""Compiled loops leave PyTorch's number of threads as it is."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("numba")

CODE = """
import numpy as np, torch
torch.set_num_threads(1)
from sandtable_kernels.structured import butterfly
from sandtable_kernels.structured.butterfly_layout import ButterflyLayout
layout = ButterflyLayout(64, 64, 4)
weights = butterfly.initial_weights(layout, np.random.default_rng(0))
butterfly.butterfly(np.ones((4096, 64), np.float32), weights, layout, n_threads=2)
print(torch.get_num_threads())
"""


def test_the_first_parallel_loop_keeps_the_threads_of_pytorch() -> None:
    # numba's OpenMP and PyTorch's are one library in a process: starting the one once set the other to all cores
    found = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "1"
