"""Calibration end to end on simulated timings: known laws go in, the same laws must come out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy", reason="fitting needs the `run` extra")

from sandtable.calibration import session, this_host
from sandtable.calibration.fit import least_squares, repeats
from sandtable.calibration.host_timing import Settings
from sandtable.calibration.timing import Timing
from sandtable.cli import calibrate_tables
from sandtable.contracts import run_command
from sandtable.demand.kernel import Kernel, KernelContext
from sandtable.demand.op import Op, random_read
from sandtable.errors import ConfigError, DoesNotFit, UnknownName
from sandtable.hardware import Machine, library
from sandtable.model.cost_model import CostModel
from sandtable.runs import measure
from sandtable.system import contention


@pytest.fixture
def timed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Let every kernel take the time that ``machine`` would, with three percent of noise."""
    costs = CostModel(machine)
    rng = np.random.default_rng(0)

    def time_kernel(kernel: Kernel, dims: Any, context: KernelContext, **_: Any) -> list[float]:
        seconds = costs.time(kernel.cost(dims)).seconds
        return [float(seconds * np.exp(rng.normal(0, 0.03))) for _ in range(3)]

    monkeypatch.setattr(measure, "time_kernel", time_kernel)
    monkeypatch.setattr(contention, "core_time", lambda: None)
    return machine


def settings(folder: Path, **changes: Any) -> Settings:
    return Settings(**({"folder": folder, "file_bytes": 1 << 28, "passes": 3, "budget_s": 1e6} | changes))


@pytest.fixture
def complete(timed: Machine) -> Machine:
    """The test machine, with a law for every kind of op that a kernel calibrates."""
    memory, processor = timed.memory, timed.processor
    assert memory.fitted is not None
    assert processor.fitted is not None
    law = memory.fitted.ops["copy"]
    compute = processor.fitted.ops["gemv"]
    memory.fitted.ops.update(dict.fromkeys(("gather", "memory_read", "insert", "cache_update"), law))
    processor.fitted.ops.update(dict.fromkeys(("sparse_ffn", "attend", "gemm", "ffn_batch"), compute))
    return timed


def test_known_laws_come_back(complete: Machine, tmp_path: Path) -> None:
    result = this_host.calibrate(settings(tmp_path))
    storage, truth = result.machine.storage.fitted, complete.storage.fitted
    assert storage is not None
    assert truth is not None
    assert storage.first_byte_s.value == pytest.approx(truth.first_byte_s.value, rel=0.15)
    assert storage.requests_per_s.value == pytest.approx(truth.requests_per_s.value, rel=0.15)
    assert storage.random_evidence.median_abs_error_frac < 0.05
    assert storage.random_evidence.held_out_median_abs_error_frac is not None
    gemv = result.machine.processor.fitted.ops["gemv"]["float16"]  # type: ignore[union-attr]
    assert gemv.bandwidth_bytes_per_s is not None
    assert gemv.bandwidth_bytes_per_s.value == pytest.approx(10e9, rel=0.1)
    errors = result.to_frame()["error_frac"].abs()
    assert np.median(errors) < 0.05
    assert not [warning for warning in result.warnings if "noisy" in warning]


def test_the_machine_file_reads_back_the_same(complete: Machine, tmp_path: Path) -> None:
    result = this_host.calibrate(settings(tmp_path))
    path = tmp_path / "m.yaml"
    library.save_component(result.machine, path)
    again = library.load_machine(str(path))
    op = random_read("x", n_chunks=1000, chunk_bytes=16384, concurrency=32)
    assert CostModel(again).time(op).seconds == pytest.approx(CostModel(result.machine).time(op).seconds, rel=1e-4)
    assert again.stack is None
    assert again.all_guesses() == []


def test_one_part_is_measured_again_and_the_others_stay(complete: Machine, tmp_path: Path) -> None:
    first = this_host.calibrate(settings(tmp_path)).machine
    second = this_host.calibrate(settings(tmp_path, only=("memory",), seed=5), first).machine
    assert second.storage == first.storage
    assert second.processor == first.processor
    assert second.memory != first.memory


def test_constants_of_software_stay_when_the_processor_is_measured_again(complete: Machine, tmp_path: Path) -> None:
    operators = library.load_accelerator("nvidia_h100_sxm").fitted.operators  # type: ignore[union-attr]
    fitted = complete.processor.fitted.model_copy(update={"operators": operators})  # type: ignore[union-attr]
    processor = complete.processor.model_copy(update={"fitted": fitted})
    base = complete.model_copy(update={"processor": processor})
    again = this_host.calibrate(settings(tmp_path, only=("compute",), passes=1), base).machine.processor
    assert again.fitted is not None
    assert again.fitted.operators == operators
    assert again.datasheet == processor.datasheet
    assert again.fitted.ops != fitted.ops


def test_one_part_alone_needs_an_earlier_calibration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only memory needs an earlier full calibration"):
        this_host.calibrate(settings(tmp_path, only=("memory",)))
    arguments = ("calibrate", "--only", "storage", "--storage-path", str(tmp_path), "-o", str(tmp_path / "m.yaml"))
    ran = run_command(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert "without --only first" in ran.error
    assert list(tmp_path.iterdir()) == []


def test_unknown_part(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'storage'"):
        this_host.calibrate(settings(tmp_path, only=("storag",)))


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(DoesNotFit, match="--file-size"):
        this_host.calibrate(settings(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_disagreeing_repeats_are_called_noisy() -> None:
    op = Op(name="x", operator="copy", account="memory", bytes_read=1e6)
    quiet = Timing(op=op, passes=((1.0,), (1.01,), (0.99,)))
    noisy = Timing(op=op, passes=((1.0,), (1.8,), (0.6,)))
    assert repeats.repeat_spread([quiet]) == pytest.approx(0.0, abs=0.02)
    spread = repeats.repeat_spread([noisy])
    assert spread is not None
    assert spread > this_host.NOISY_SPREAD_FRAC


def observed(deviations: np.ndarray[Any, Any]) -> list[Timing]:
    """Timings of ten milliseconds, whose passes lie off by e to the deviations [points, passes]."""
    op = Op(name="x", operator="copy", account="memory", bytes_read=1e6)
    return [Timing(op=op, passes=tuple((0.01 * float(np.exp(d)),) for d in row)) for row in deviations]


def test_drift_is_what_a_pass_shares_and_scatter_is_not() -> None:
    rng = np.random.default_rng(0)
    found = []
    for drift in (0.0, 0.1):
        trials = []
        for _ in range(100):
            shared, own = drift * rng.standard_normal(4), 0.3 * rng.standard_normal((60, 4))
            trials.append(repeats.drift(observed(shared + own)) or 0.0)
        found.append(float(np.sqrt(np.mean(np.log1p(trials) ** 2))))
    # Student's t of three degrees is 2.353 at 95 %; one more draw beside the mean of four
    assert found[1] == pytest.approx(2.353 * np.sqrt(1 + 1 / 4) * 0.1, rel=0.15)
    assert found[0] < 0.6 * found[1]


@pytest.mark.parametrize(("scatter", "again"), [(0.0, 1.0), (0.2, 0.5), (0.1, 0.8)])
def test_what_a_law_misses_comes_again_and_scatter_does_not(scatter: float, again: float) -> None:
    """Of four passes the median keeps about a quarter of the scatter's square."""
    rng = np.random.default_rng(0)
    law, own = 0.1 * rng.standard_normal((4000, 1)), scatter * rng.standard_normal((4000, 4))
    timings = observed(law + own)
    missed = -np.log([timing.seconds for timing in timings])
    missed -= missed.mean()
    assert least_squares.seen_again(timings, missed) == pytest.approx(again, abs=0.06)


def test_scatter_alone_never_comes_again() -> None:
    rng = np.random.default_rng(0)
    timings = observed(0.1 * rng.standard_normal((2000, 4)))
    missed = -np.log([timing.seconds for timing in timings])
    assert least_squares.seen_again(timings, missed - missed.mean()) == pytest.approx(0, abs=0.06)
    assert least_squares.seen_again(timings, missed[1:]) is None


def test_drift_is_no_more_than_repeats_differ() -> None:
    """Two passes alone would have Student's t allow anything."""
    off = observed(np.tile([[-0.05, 0.05]], (20, 1)))
    spread, drift = repeats.repeat_spread(off), repeats.drift(off)
    assert spread is not None
    assert 0.05 < spread < 0.08
    assert drift == spread


def test_one_pass_shows_no_drift() -> None:
    assert repeats.drift(observed(np.zeros((5, 1)))) is None
    assert repeats.drift([]) is None
    assert repeats.drift(observed(np.zeros((5, 3)))) == 0.0


def test_the_command_cleans_up_after_itself(complete: Machine, tmp_path: Path) -> None:
    output = tmp_path / "m.yaml"
    outcome = session.run(
        quick=True,
        only=None,
        folder=tmp_path / "disk",
        file_size="256 MiB",
        output=output,
        cross_check=None,
        keep_file=False,
        progress=lambda _: None,
    )
    assert output.is_file()
    assert not (tmp_path / "disk" / measure.TEST_FOLDER).exists()
    fitted = [row[0] for row in calibrate_tables.tables(outcome)[0].rows]
    assert "first_byte" in fitted
    kernels = [row[0] for row in calibrate_tables.tables(outcome)[1].rows]
    assert "random_read" in kernels


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"file_size": "1 GB/s"}, "a size is needed"),
        ({"file_size": "1 MiB"}, "at least 256 MiB"),
        ({"cross_check": "dd"}, "--cross-check knows 'fio'"),
    ],
)
def test_bad_settings(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    options: dict[str, Any] = {
        "quick": True,
        "only": None,
        "folder": tmp_path,
        "file_size": None,
        "output": tmp_path / "m.yaml",
        "cross_check": None,
        "keep_file": False,
        "progress": lambda _: None,
    }
    with pytest.raises(ConfigError, match=sentence):
        session.run(**(options | changes))
