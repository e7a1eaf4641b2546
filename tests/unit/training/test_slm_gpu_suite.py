"""The suite for a machine with a GPU: what it covers, that it fits and ends soon, and where it is refused."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest

from sandtable.contracts import run_command
from sandtable.errors import NoDevice
from sandtable.hardware import library
from sandtable.runs import measure
from sandtable.studies import study
from sandtable_workloads.training import slm_training
from sandtable_workloads.training.slm_training import SlmTrainingWorkload
from sandtable_workloads.training.training_parameters import SlmTraining

SUITE = "slm-gpu"
# seconds of steps, those that warm up and that of the memory profile included; starting runs takes the rest of
# four minutes: about ten seconds each, and drawing a billion weights another ten
MOST_STEPS_S = 40.0


@lru_cache(maxsize=1)
def runs() -> list[SlmTraining]:
    suite = study.load(SUITE).changed({"machine": "dgx_h100", "stack": "pytorch_cuda"})
    return [SlmTraining.model_validate(case.parameters) for case in suite.resolved()]


def test_it_spans_sizes_types_and_both_ways_of_attention() -> None:
    sizes = sorted({p.shape.n_params for p in runs()})
    assert sizes[0] < 150e6
    assert sizes[-1] > 1.9e9
    assert {(p.attention, p.precision) for p in runs()} >= {
        ("flash", "bfloat16"),
        ("flash", "mixed_bfloat16"),
        ("vanilla", "mixed_bfloat16"),
    }
    assert {p.devices for p in runs()} == {1}


def test_it_fits_a_gpu_of_80_gb_and_ends_in_minutes() -> None:
    machine = library.load_machine("dgx_h100", {"stack": "pytorch_cuda"})
    assert all(verdict.fits for verdict in SlmTrainingWorkload().verdicts(runs(), machine))
    steps = slm_training.estimate(runs(), machine)["step_s"]
    taken = [(p.steps + p.warmup_steps + 1) * step for p, step in zip(runs(), steps, strict=True)]
    assert sum(taken) < MOST_STEPS_S


def test_it_is_refused_in_one_sentence_where_pytorch_has_no_gpu(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Timer:
        def describe(self) -> None:
            raise NoDevice("no GPU is seen")

        def close(self) -> None:
            pass

    monkeypatch.setattr(measure, "gpu_timer", Timer)
    done = run_command("check", "--suite", SUITE)
    assert (done.code, done.out) == (4, "")
    assert done.err.strip().endswith("no GPU is seen")
    assert list(in_tmp.iterdir()) == []


def test_a_machine_without_an_accelerator_is_refused() -> None:
    on_cpu = study.load(SUITE).changed({"machine": "laptop_pcie4"})
    with pytest.raises(NoDevice, match=r"slm-gpu is for machines with an accelerator and laptop_pcie4 has none: "):
        next(on_cpu.resolved())
