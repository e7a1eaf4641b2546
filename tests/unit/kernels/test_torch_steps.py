"""Operators timed within training steps: the parts of a step are all of it, and every point of a grid is one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from sandtable.calibration.fit.operator_fit import separate
from sandtable.calibration.timing import Timing
from sandtable.demand.kernel import Calls, Dims, Kernel, kernels
from sandtable.hardware import library
from sandtable.model.fitted_constants import softwares_of
from sandtable_kernels.pytorch.steps import step_points
from sandtable_kernels.pytorch.steps.step_points import StepSize, StepTimings
from sandtable_kernels.pytorch.torch_operators import TorchAdamW, TorchGemm, TorchKernel

POINTS = [
    (kernel, dims)
    for kernel in kernels().values()
    if isinstance(kernel, TorchKernel) and kernel.calibrates == "training"
    for dims in kernel.grid(quick=False)
    if "within" in dims
]
SMALL = StepSize(2, 64, 96, 2, 16, 40)


class OnePool:
    """Workers that answer with one sample of a second for every part of a step."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def time_parts(self, case: str, dims: Mapping[str, Any], **_: Any) -> dict[str, list[float]]:
        self.asked[f"{dims['within']} {dims['processes']}"] += 1
        forward = ("embedding", "norm", "qkv", "rope", "attention", "attention output", "residual")
        forward += ("ffn up", "activation", "ffn down", "head", "loss")
        backward = [f"{part} backward" for part in forward if part != "residual"]
        return {part: [1.0] for part in (*forward, *backward, "optimizer")}


def test_every_step_is_timed_once_a_pass_whatever_part_comes_first() -> None:
    workers, steps = OnePool(), StepTimings()
    for n_passes in (1, 2):
        for _, dims in POINTS[:: 1 if n_passes == 1 else -1]:
            calls = steps.take(dims, workers, 0.1)  # type: ignore[arg-type]
            assert isinstance(calls, Calls)
            # the two products of a backward pass have half of its time each
            assert sum(calls) == (0.5 if str(dims.get("pass")).startswith("backward_") else 1.0)
        assert len(workers.asked) == 2 * len(step_points.SIZES)
        assert set(workers.asked.values()) == {n_passes}


def test_every_part_of_a_step_is_a_point() -> None:
    size = step_points.SIZES[0]
    mine = [(kernel, dims) for kernel, dims in POINTS if dims["within"] == size.name and dims["processes"] == 1]
    parts = Counter(step_points.part_of(dims) for _, dims in mine)
    timed = OnePool().time_parts("step", {"within": size.name, "processes": 1})
    assert set(parts) == set(timed)
    assert len(mine) == size.n_points
    assert all(
        n == (2 if part.removesuffix(" backward") in size.products and part.endswith("backward") else 1)
        for part, n in parts.items()
    )


@pytest.mark.parametrize("quick", [True, False])
def test_every_group_of_constants_has_points_enough(quick: bool) -> None:
    timings = [
        Timing.of_kernel(kernel, dims, [[1.0]])
        for kernel in kernels().values()
        if isinstance(kernel, TorchKernel) and kernel.calibrates == "training"
        for dims in kernel.grid(quick=quick)
    ]
    enough, few = separate(timings)
    assert not few
    assert {group.software for group in enough} >= {
        "pytorch_cpu",
        "pytorch_cpu_norm_backward",
        "pytorch_cpu_vanilla_shared",
    }


def test_parts_have_the_constants_that_the_plan_looks_for() -> None:
    """What is fitted under a name is what an op of a planned step finds first."""
    stack = library.load_component("stack", "pytorch_cpu")
    for kernel, dims in POINTS:
        timing = Timing.of_kernel(kernel, dims, [[1.0]])
        software = timing.software.removesuffix("_shared")
        assert softwares_of(timing.law, timing.op, stack)[0] == software, dims  # type: ignore[arg-type]


def test_sizes_count_their_weights() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch's operators need PyTorch")
    from sandtable_kernels.pytorch.steps.torch_step import Steps

    steps = Steps(SMALL)
    weights = [p for group in steps.optimizer.param_groups for p in group["params"]]
    assert sum(p.numel() for p in weights) == SMALL.n_params
    assert len(weights) == SMALL.n_tensors
    assert torch.is_tensor(weights[0])


@pytest.mark.parametrize("flash", [True, False])
def test_the_parts_are_the_whole_step(flash: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts its readings, every interval but that of the optimiser lies between two neighbours."""
    pytest.importorskip("torch", reason="PyTorch's operators need PyTorch")
    from sandtable_kernels.pytorch.steps import torch_step

    steps = torch_step.Steps(SMALL._replace(flash=flash))
    steps()
    ticks = iter(range(10_000))
    monkeypatch.setattr(torch_step, "perf_counter", lambda: float(next(ticks)))
    found, passes = steps()
    counts = {part: len(seconds) for part, seconds in found.items()}
    layers = SMALL.layers
    assert counts["norm"] == counts["norm backward"] == counts["residual"] == 2 * layers
    assert counts["attention"] == counts["ffn up backward"] == layers
    assert counts["loss"] == counts["last norm"] == counts["embedding backward"] == counts["optimizer"] == 1
    assert "residual backward" not in counts
    # in order, none twice and none left out; both passes have a beginning and an end, and each part an end
    assert all(seconds == 1.0 for part in found.values() for seconds in part)
    assert next(ticks) == sum(counts.values()) + 3
    n_backward = sum(n for part, n in counts.items() if part.endswith("backward"))
    assert passes == (sum(counts.values()) - n_backward, n_backward + 1)


def test_parts_add_up_to_a_step_without_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock whose reading takes a second, while all else takes none: a pass without marks takes one."""
    pytest.importorskip("torch", reason="PyTorch's operators need PyTorch")
    from sandtable_kernels.pytorch.steps import torch_step

    ticks = iter(range(100_000))
    monkeypatch.setattr(torch_step, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setitem(torch_step.BY_NAME, SMALL.name, SMALL)
    found, n_steps = torch_step.timed_parts(SMALL.name, 2, 1e9, lambda value: value), 2
    forward = [seconds for part, seconds in found.items() if part != "optimizer" and "backward" not in part]
    assert sum(map(sum, forward)) == pytest.approx(n_steps * 1.0)
    backward = sum(sum(seconds) for part, seconds in found.items() if part.endswith("backward"))
    # two norms of each layer hand on a sum that is not theirs
    sums = n_steps * 2 * SMALL.layers * found["residual"][0]
    assert backward == pytest.approx(n_steps * 1.0 - sums, rel=0.1)
    assert found["optimizer"] == [1.0, 1.0]


def test_a_step_that_was_held_up_counts_in_the_mean_unless_it_lies_far_off() -> None:
    pytest.importorskip("torch", reason="PyTorch's operators need PyTorch")
    from sandtable_kernels.pytorch.steps.torch_step import Passes, _add_up

    found = {"qkv": [1.0, 1.0, 1.3], "qkv backward": [2.0, 2.0, 2.0], "optimizer": [1.0, 1.2, 9.0]}
    _add_up(found, Passes(1.2, 4.0), n_steps=3)
    assert found["qkv"] == pytest.approx([1.2, 1.2, 1.56])
    assert found["qkv backward"] == pytest.approx([4.0, 4.0, 4.0])
    assert sorted(found["optimizer"])[1] == pytest.approx(1.1)


def test_workers_time_the_parts_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="PyTorch's operators need PyTorch")
    from sandtable_kernels.pytorch.steps import torch_step

    monkeypatch.setitem(torch_step.BY_NAME, SMALL.name, SMALL)
    request = {"dims": {"within": SMALL.name}, "repeats": 3, "budget_s": 0.0}
    found = torch_step.request_parts(request, lambda value: value)
    assert set(found) == set(OnePool().time_parts("step", {"within": SMALL.name, "processes": 1}))
    assert all(seconds > 0 for part in found.values() for seconds in part)
    assert len(found["norm"]) == 2 * (2 * SMALL.layers + 1)
    assert len(found["optimizer"]) == 2


def test_what_is_not_within_a_step_is_timed_alone() -> None:
    alone: list[tuple[Kernel, Dims]] = [
        (TorchGemm(), TorchGemm().example()),
        (TorchAdamW(), TorchAdamW().example()),
    ]
    for kernel, dims in alone:
        assert kernel.software_of(dims) == kernel.software == "pytorch_cpu"


def test_threads_of_pytorch_spin_as_its_users_have_it() -> None:
    """Compiled loops shorten the spinning of this process alone: a training step would take twice as long."""
    code = (
        "from sandtable_kernels.compiled import memory_loops; import os; "
        "from sandtable_kernels.pytorch.torch_pool import environment; "
        "print(os.environ['GOMP_SPINCOUNT'], environment(2).get('GOMP_SPINCOUNT'))"
    )
    without = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run([sys.executable, "-c", code], env=without, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1000", "None"]
