"""How a fit scales: linear in events up to ten million, fifty million by batches from Parquet, two ranks against one.

``SANDTABLE_BENCH=1 pytest -s tests/bench/test_rpf_scale.py`` prints what it measured and draws it to
``runs/rpf_scale.svg``. Each fit is a process of its own, so that its peak memory is its own. Seconds are of the
shortest of seven iterations: what else runs on the machine makes the others longer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(not os.environ.get("SANDTABLE_BENCH"), reason="minutes: set SANDTABLE_BENCH=1")

N_CORES = os.cpu_count() or 1
DATA = """
import json, sys, time
from pathlib import Path
import numpy as np
from sandtable.system import limits
from sandtable_workloads.rpf.estimators.recurrent_factorization import HRPF
from sandtable_workloads.rpf.events.event_store import EventStore
from sandtable_workloads.rpf.events.generated_events import GeneratedEvents
from sandtable_workloads.rpf.scaled.stochastic_fit import StochasticOptions, fit_stochastic

def made(n):
    return GeneratedEvents(n_users=max(n // 50, 200), n_items=min(max(n // 100, 100), 20_000), n_events=n, seed=1)

def told(**found):
    print(json.dumps(found | {"peak_bytes": limits.status_bytes("VmHWM")}))
"""
AT_ONCE = """
n, ranks = int(sys.argv[1]), int(sys.argv[2])
table, ends = made(n).table(), []
threads = {1: None, 2: 1}[ranks] if len(sys.argv) < 4 else int(sys.argv[3])
model = HRPF(20, max_iter=8, tol=1e-30, n_ranks=ranks, n_threads=threads)
model.fit(table, progress=lambda done: ends.append(done.seconds))
told(seconds=float(np.min(np.diff(ends))), elbo=model.elbo_)
"""
WRITTEN = """
start = time.monotonic()
store = EventStore.of_generated(sys.argv[2], made(int(sys.argv[1])))
told(seconds=time.monotonic() - start, n_bytes=(Path(sys.argv[2]) / "events.parquet").stat().st_size)
"""
BY_BATCHES = """
start = time.monotonic()
model = fit_stochastic(HRPF(20, tol=1e-30), sys.argv[2], options=StochasticOptions(n_epochs=2))
told(seconds=time.monotonic() - start, elbo=model.elbo_, n_steps=model.n_iter_)
"""


def measured(program: str, *arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-c", DATA + program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{arguments}: {found['seconds']:.3f} s, {found['peak_bytes'] / 1e9:.2f} GB at most")
    return found


def test_time_is_linear_in_events_and_memory_small() -> None:
    sizes = np.array([100_000, 300_000, 1_000_000, 3_000_000, 10_000_000])
    found = [measured(AT_ONCE, n, 1) for n in sizes]
    seconds = np.array([each["seconds"] for each in found])
    draw(sizes, seconds, np.array([each["peak_bytes"] for each in found]))
    assert seconds[-1] <= 5.0
    assert found[-1]["peak_bytes"] <= 4e9
    # caches hold the rows of small data: what is linear is judged from a million events on
    slope = np.polyfit(np.log(sizes[2:]), np.log(seconds[2:]), 1)[0]
    assert 0.85 < slope < 1.2


def draw(sizes: Any, seconds: Any, peaks: Any) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
    for axis, values, words in ((left, seconds, "seconds per iteration"), (right, peaks / 1e9, "peak memory (GB)")):
        axis.loglog(sizes, values, "o-")
        axis.loglog(sizes, values[-1] * sizes / sizes[-1], ":", color="gray", label="linear")
        axis.set(xlabel="events", ylabel=words)
        axis.legend()
    Path("runs").mkdir(exist_ok=True)
    figure.suptitle(f"HRPF, 20 components, float32, {N_CORES} cores")
    figure.tight_layout()
    figure.savefig("runs/rpf_scale.svg")
    plt.close(figure)


@pytest.mark.skipif(N_CORES < 2, reason="two ranks need two cores")
def test_two_ranks_against_one() -> None:
    one, two = measured(AT_ONCE, 10_000_000, 1, 1), measured(AT_ONCE, 10_000_000, 2)
    assert two["elbo"] == pytest.approx(one["elbo"], rel=1e-6)  # sums in float32 are of other blocks
    assert one["seconds"] / two["seconds"] >= 1.7


def test_more_events_than_memory_need_hold(tmp_path: Path) -> None:
    n = int(float(os.environ.get("SANDTABLE_RPF_EVENTS", "5e7")))
    written = measured(WRITTEN, n, tmp_path / "events")
    fitted = measured(BY_BATCHES, n, tmp_path / "events")
    print(
        f"{written['n_bytes'] / 1e9:.2f} GB of Parquet, {2 * n * 20 / fitted['seconds'] / 1e6:.0f} M (events x K)/s"
    )
    assert fitted["elbo"][1] > fitted["elbo"][0]
    assert fitted["peak_bytes"] < 2.5e9
