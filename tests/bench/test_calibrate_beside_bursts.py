"""Calibrated while another program keeps all cores busy half of the time, a machine has the constants of quiet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandtable import hardware
from sandtable.calibration import session
from sandtable.hardware import Estimate, Machine

pytestmark = pytest.mark.skipif(
    os.environ.get("SANDTABLE_BENCH") != "1", reason="a benchmark: set SANDTABLE_BENCH=1"
)
pytest.importorskip("scipy", reason="fitting needs the `run` extra")
BURNER = Path(__file__).parents[1] / "shared" / "burner.py"
MOST_FRAC = 0.15
# constants that a fit knows no better than this in quiet are not compared
KNOWN_FRAC = 0.15


def calibrated(folder: Path) -> Machine:
    folder.mkdir()
    return session.run(quick=True, only="storage,memory,compute", folder=folder, output=folder / "m.yaml").machine


def constants(machine: Machine) -> dict[str, Estimate[float]]:
    found = {}
    for part in (machine.memory, machine.processor, machine.storage):
        for number in hardware.numbers(part):
            if number.path.startswith("fitted.") and isinstance(number.value, Estimate):
                found[f"{part.kind} {number.path}"] = number.value
    return found


def test_constants_stay_and_the_disturbance_is_named(tmp_path: Path) -> None:
    quiet = calibrated(tmp_path / "quiet")
    burner = subprocess.Popen([sys.executable, str(BURNER), "300"], start_new_session=True)
    try:
        busy = calibrated(tmp_path / "busy")
    finally:
        os.killpg(burner.pid, 9)
        burner.wait()
    assert "timed again until calm" in busy.environment["disturbed"]
    before, after = constants(quiet), constants(busy)
    known = [n for n, e in before.items() if e.high < e.low * (1 + KNOWN_FRAC) ** 2]
    ratios = {name: after[name].value / before[name].value for name in known}
    sys.stdout.write("".join(f"{name}: {ratio:.3f}\n" for name, ratio in sorted(ratios.items())))
    assert len(known) >= 10
    assert all(1 / (1 + MOST_FRAC) <= ratio <= 1 + MOST_FRAC for ratio in ratios.values())
