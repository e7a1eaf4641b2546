"""Our butterfly and Monarch kernels beside what else multiplies so: timed in turn in one process, rows in and out.

Run with ``SANDTABLE_BENCH=1 pytest -s tests/bench/test_structured_peers.py`` on an otherwise idle machine. Peers of
torch-structured (PyPI) come with the extra ``bench``; its C++ kernels, the fastest it has for CPUs, are compiled by
``FORCE_CUDA=1 FORCE_CPU=1 pip install --no-binary torch-structured --no-deps --no-build-isolation torch-structured``.
Its layers are of base 2, with as many multiplications as ours of base 4. ksmm, another kernel for such matrices, runs
on GPUs only.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROUNDS = 25
# after so long together, a slow one is not called again
MOST_S = 0.5
SIZES = (256, 1024, 4096)
BATCHES = (16, 256)
OURS = "our butterfly"
PEERS = "torch-structured"
Call = Callable[[], object]


def contenders(n: int, batch: int, n_threads: int) -> dict[str, Call]:
    """Return one call for each, on the same rows; peers that are not installed are left out."""
    import scipy.fft
    import torch

    from sandtable_kernels.structured.structures import structured

    rng = np.random.default_rng(0)
    x, out = rng.standard_normal((batch, n), dtype=np.float32), np.empty((batch, n), np.float32)
    rows, dense = torch.from_numpy(x), torch.randn(n, n) / n**0.5

    def ours(structure: str, **options: Any) -> Call:
        product = structured(structure, n, n, **options)
        weights = product.initial_weights(rng)
        return lambda: product.forward(x, weights, out=out, n_threads=n_threads)

    return {
        "torch dense": lambda: rows @ dense.T,
        OURS: ours("butterfly", base=4),
        "our Monarch": ours("monarch"),
        "our circulant": ours("circulant"),
        "torch.fft.rfft": lambda: torch.fft.rfft(rows),
        "scipy.fft.rfft": lambda: scipy.fft.rfft(x, axis=1, workers=n_threads),
        **torch_structured(rows, n),
    }


def torch_structured(rows: Any, n: int) -> dict[str, Call]:
    """Return the butterflies of torch-structured: of base 2 and 4 in PyTorch, and compiled where that was done."""
    import torch

    try:
        from torch_structured.butterfly import Butterfly
        from torch_structured.butterfly.multiply import butterfly_multiply_torch
        from torch_structured.butterfly.multiply_base4 import (
            butterfly_multiply_base4_torch,
            twiddle_base2_to_base4,
        )
    except ImportError:
        return {}
    weights, stacked = Butterfly(n, n, bias=False).twiddle.detach().clone(), rows[:, None, :]
    fours = twiddle_base2_to_base4(weights, True)
    found: dict[str, Call] = {
        f"{PEERS} base 2": lambda: butterfly_multiply_torch(weights, stacked),
        f"{PEERS} base 4": lambda: butterfly_multiply_base4_torch(*fours, stacked),
    }
    compiled = getattr(torch.ops.torch_structured, "butterfly_multiply_fw", None)
    if compiled is not None:
        found[f"{PEERS} C++"] = lambda: compiled(weights, stacked, True, n)
    return found


def timed(n_threads: int) -> list[dict[str, Any]]:
    """Time all in turn, each after a call that is not timed; return the quickest of their calls in seconds.

    The quickest, as a thread that waits for a core makes a call of microseconds one of milliseconds.
    """
    import torch

    torch.set_num_threads(n_threads)
    found = []
    with torch.inference_mode():
        for n, batch in itertools.product(SIZES, BATCHES):
            calls = contenders(n, batch, n_threads)
            seconds: dict[str, list[float]] = {name: [] for name in calls}
            for name in itertools.chain.from_iterable([*calls] for _ in range(ROUNDS)):
                if sum(seconds[name]) < MOST_S:
                    seconds[name].append(once(calls[name]))
            found.append({"n": n, "batch": batch, "seconds": {name: min(taken) for name, taken in seconds.items()}})
    return found


def once(call: Call) -> float:
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.mark.skipif(os.environ.get("SANDTABLE_BENCH") != "1", reason="a benchmark: set SANDTABLE_BENCH=1")
@pytest.mark.parametrize("n_threads", [1, 2])
def test_our_butterfly_is_no_slower_than_those_of_others(n_threads: int) -> None:
    for package in ("numba", "scipy", "torch"):
        pytest.importorskip(package)
    if (os.cpu_count() or 1) < n_threads:
        pytest.skip(f"this machine has no {n_threads} cores")
    threads = {f"{library}_NUM_THREADS": str(n_threads) for library in ("OPENBLAS", "OMP", "MKL")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", Path(__file__), str(n_threads)],
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    sys.stdout.write(table(found, n_threads))
    for point in found:
        peers = [taken for name, taken in point["seconds"].items() if name.startswith(PEERS)]
        assert point["seconds"][OURS] <= min(peers, default=math.inf), f"n = {point['n']}, batch {point['batch']}"


def table(found: list[dict[str, Any]], n_threads: int) -> str:
    """Return milliseconds, and in brackets how many times ours."""
    heads = [f"{point['n']} x {point['batch']}" for point in found]
    lines = [
        f"\n{n_threads} thread(s), ms (times our butterfly)",
        f"{'n x batch':24}" + "".join(f"{h:>18}" for h in heads),
    ]
    for name in found[0]["seconds"]:
        cells = (f"{1e3 * p['seconds'][name]:.3f} ({p['seconds'][name] / p['seconds'][OURS]:.2f})" for p in found)
        lines.append(f"{name:24}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(json.dumps(timed(int(sys.argv[1]))))
