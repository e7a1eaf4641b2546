"""The same thing is started twice at once, 30 times: one does it, the other does too or says why it does not."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandtable_kernels.files import container
from sandtable_kernels.files.container import Header

pytestmark = pytest.mark.skipif(not os.environ.get("SANDTABLE_BENCH"), reason="minutes: set SANDTABLE_BENCH=1")
N = int(os.environ.get("SANDTABLE_PAIRS", "10"))

STORE = """
import sys
from sandtable_kernels.files.store import StoreGeometry, create_store
create_store("x.neurons", StoreGeometry(n_layers=4, n_neurons=4096, d_model=1024), seed=0, replace=True)
"""
TRAINING = """
import sys
from pathlib import Path
from sandtable.hardware.library import load_machine
from sandtable.workload.seam import ExecutionContext
from sandtable_workloads.training.executed import run_job
from sandtable_workloads.training.training_parameters import SlmTraining
p = SlmTraining(model="tiny_2x32", sequence_tokens=32, micro_batch=4, precision="float32", steps=40, warmup_steps=0)
context = ExecutionContext(folder=Path("stores"), n_threads=1)
found = run_job.run_training(p, load_machine("laptop_pcie4"), 1, context)
print([step.counters["loss"].hex() for step in found.steps])
"""
CALIBRATION = """
import time
from pathlib import Path
from sandtable.calibration import session, this_host
from sandtable.calibration.calibrated import Calibrated
from sandtable.hardware.library import load_machine
def slow(settings, base=None):
    time.sleep(1.5)
    return Calibrated(machine=load_machine("laptop_pcie4").model_copy(update={"name": "this_machine"}))
this_host.calibrate = slow
session.run(quick=True, folder=Path("stores"))
"""


@pytest.mark.parametrize("what", ["store", "training", "calibration"])
def test_pairs(in_tmp: Path, what: str) -> None:
    program = {"store": STORE, "training": TRAINING, "calibration": CALIBRATION}[what]
    rng, refused, printed = random.Random(what), 0, set()
    for _ in range(N):
        pair = []
        for _ in range(2):
            one = subprocess.Popen(
                [sys.executable, "-P", "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            pair.append(one)
            time.sleep(rng.uniform(0, 1.0))
        ended = [(one.communicate(timeout=300), one.returncode) for one in pair]
        assert 0 in [code for _, code in ended], ended
        for (out, err), code in ended:
            if code == 0:
                printed.add(out)
            else:
                refused += 1
                assert "sandtable.errors.InUse: " in err
                assert "wait until it is done, or end it" in err
        assert not [*in_tmp.rglob("*.partial"), *in_tmp.rglob("*.lock"), *in_tmp.rglob("sandtable-cold-*")]
    print(f"{what}: {refused} of {N} second ones refused")
    assert len(printed) == 1  # the same losses whoever trained
    if what == "store":
        container.verify(Path("x.neurons"), Header.read(Path("x.neurons")), "always", "layer")
