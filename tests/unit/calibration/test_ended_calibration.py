"""A calibration that was ended goes on where it stopped, and leaves nothing in the way of the next one."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sandtable.calibration import host_timing, this_host
from sandtable.calibration.calibrated import Calibrated
from sandtable.calibration.host_timing import Settings
from sandtable.calibration.point_log import PointLog
from sandtable.calibration.visits import Visit
from sandtable.contracts import run_command
from sandtable.demand.kernel import Kernel, KernelContext
from sandtable.errors import ConfigError
from sandtable.hardware import Machine
from sandtable.runs import measure
from sandtable.system import atomic_files, contention

ENDED_AFTER = 30


class Timer:
    """Takes the place of `measure.time_kernel`: counts its calls, and ends the program at one of them."""

    def __init__(self, ended_after: int | None) -> None:
        self.n_calls, self.ended_after = 0, ended_after

    def __call__(self, kernel: Kernel, dims: Any, context: KernelContext, **_: Any) -> list[float]:
        if self.n_calls == self.ended_after:
            raise KeyboardInterrupt
        self.n_calls += 1
        return [1.0 + 1e-6 * self.n_calls, 1.0]


def observed(folder: Path, log: PointLog | None, timer: Timer) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "time_kernel", timer)
        patch.setattr(measure, "probed", lambda *_: {})
        todo = Settings(folder=folder, file_bytes=1 << 28, passes=2, budget_s=1e6, quick=True, log=log)
        patch.setattr(contention, "core_time", lambda: None)
        return [timing.passes for timing in host_timing.observe(todo).timings]


def test_points_that_were_timed_are_not_timed_again(tmp_path: Path) -> None:
    whole = Timer(None)
    right = observed(tmp_path, None, whole)
    log = PointLog.begin(tmp_path / "m.yaml.partial", {"quick": True})
    with pytest.raises(KeyboardInterrupt):
        observed(tmp_path, log, Timer(ENDED_AFTER))
    again = PointLog.resume(log.path)
    assert again.settings == {"quick": True}
    assert again.n_points == ENDED_AFTER
    rest = Timer(None)
    rest.n_calls = ENDED_AFTER
    assert observed(tmp_path, again, rest) == right
    assert rest.n_calls == whole.n_calls


def test_a_log_that_was_cut_off_or_damaged_gives_only_whole_points(tmp_path: Path) -> None:
    log = PointLog.begin(tmp_path / "m.yaml.partial", {"quick": True})
    for index in range(20):
        log.add("storage", index / 2, index, "read", {"chunk_bytes": 4096}, Visit([index * 0.1], 0.25))
    whole, rng = log.path.read_bytes(), random.Random(0)
    header = whole.index(b"\n") + 1
    for _ in range(300):
        data = bytearray(whole[: rng.randrange(header + 1, len(whole))])
        data[rng.randrange(header, len(data))] ^= 1 << rng.randrange(8)
        log.path.write_bytes(bytes(data))
        found = PointLog.resume(log.path)
        for index in range(20):
            assert found.known(index, "read", {"chunk_bytes": 4096}) in (None, Visit([index * 0.1], 0.25))
        assert found.elapsed_s("storage") == max(0, found.n_points - 1) / 2
    log.path.write_bytes(b"x" + whole)
    with pytest.raises(ConfigError, match="damaged in its first line"):
        PointLog.resume(log.path)


def test_an_interruption_says_what_is_saved_and_how_to_go_on(
    in_tmp: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(settings: Settings, base: Machine | None = None) -> Calibrated:
        assert settings.log is not None
        if settings.log.n_points:
            assert settings.quick
            assert settings.file_bytes == 1 << 28
            return Calibrated(machine=machine.model_copy(update={"name": "this_machine"}))
        (settings.folder / "sandtable-random-268435456.bin").write_text("much")
        settings.log.add("storage", 1.0, 0, "read", {}, Visit([0.1]))
        raise KeyboardInterrupt

    monkeypatch.setattr(this_host, "calibrate", ended)
    ran = run_command("calibrate", "--quick", "--file-size", "256 MiB")
    assert ran.code == 130
    assert ran.error == (
        "sandtable: interrupted; 1 timed points are saved: go on with 'sandtable calibrate --resume'"
    )
    assert sorted(os.listdir()) == ["stores", "this_machine.yaml.partial"]
    assert os.listdir("stores") == []
    again = run_command("calibrate", "--resume")
    assert again.code == 0, again.err
    assert sorted(os.listdir()) == ["stores", "this_machine.yaml"]
    nothing = run_command("calibrate", "--resume")
    assert nothing.code == 2
    assert "no calibration was ended here" in nothing.error


def test_before_the_first_point_nothing_is_saved_and_nothing_is_claimed(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*_: Any) -> Calibrated:
        raise KeyboardInterrupt

    monkeypatch.setattr(this_host, "calibrate", ended)
    ran = run_command("calibrate", "--quick")
    assert ran.error == "sandtable: interrupted; nothing was finished yet"
    assert os.listdir() == ["stores"]


def test_leftovers_of_a_killed_calibration_stand_in_nobodys_way(
    in_tmp: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = Path("stores/calibration/sandtable-cold-abcd1234")
    cold.mkdir(parents=True)
    (cold / "sandtable-random-536870912.bin").write_text("half a GiB")
    (cold.parent / "sandtable-random-1073741824.bin").write_text("a GiB")

    def calibrated(settings: Settings, base: Machine | None = None) -> Calibrated:
        with atomic_files.temporary_folder(settings.folder, "cold"):
            assert not cold.exists()
        return Calibrated(machine=machine.model_copy(update={"name": "this_machine"}))

    monkeypatch.setattr(this_host, "calibrate", calibrated)
    assert run_command("calibrate", "--quick").code == 0
    assert os.listdir("stores") == []


def test_the_next_run_clears_a_test_file_that_a_killed_calibration_left(in_tmp: Path) -> None:
    pytest.importorskip("numba", reason="running for real needs numba")
    test = Path("stores/calibration")
    test.mkdir(parents=True)
    for kept in (True, False):
        (test / "sandtable-random-1073741824.bin").write_text("a GiB")
        if kept:
            (test / measure.KEPT).touch()
        else:
            (test / measure.KEPT).unlink()
        measure.execution_context(Path("stores"))
        assert test.exists() == kept


def test_two_calibrations_into_one_file(in_tmp: Path) -> None:
    holder = "import sys, time\nfrom pathlib import Path\nfrom sandtable.calibration import session\n"
    holder += (
        "with session._claimed(Path('this_machine.yaml')):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        ran = run_command("calibrate", "--quick")
        other.kill()
    assert ran.code == 2
    assert f"this_machine.yaml: process {other.pid} (since " in ran.error
    assert "calibrates into this file: wait until it is done, or end it" in ran.error
