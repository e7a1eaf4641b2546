"""From timed operators to constants: what made the times is found again, on all cores and on a share of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from timed import made_up

from sandtable.calibration import host_timing, machine_fit, session, this_host
from sandtable.calibration.host_timing import Settings
from sandtable.calibration.timing import Timing
from sandtable.demand.kernel import Dims, KernelContext, kernels
from sandtable.demand.op import Op
from sandtable.demand.operator_shapes import GemmShape, MemoryBoundShape
from sandtable.errors import ConfigError, UnknownName
from sandtable.hardware import Machine, library
from sandtable.model.cost_model import CostModel
from sandtable.model.fitted_constants import SHARED
from sandtable.system import contention
from sandtable_kernels.pytorch.torch_operators import (
    TorchAttention,
    TorchCollective,
    TorchGemm,
    TorchKernel,
    TorchStream,
)
from sandtable_kernels.pytorch.vision_operators import VisionKernel


@pytest.mark.parametrize("kernel", [TorchGemm(), TorchAttention(), TorchStream()], ids=lambda kernel: kernel.name)
def test_operators_are_found_again(kernel: TorchKernel, machine: Machine) -> None:
    timed = made_up(kernel, machine)
    fitted = machine_fit.fitted(machine, timed, "made up")
    costs = CostModel(fitted)
    errors = [costs.time(item.op).seconds / item.seconds - 1 for item in timed]
    assert np.median(np.abs(errors)) < 0.05
    assert fitted.stack is not None
    assert fitted.stack.name == "pytorch_cpu"
    fits = fitted.processor.fitted
    assert fits is not None
    names = set(fits.operators[timed[0].law.fitted_as])
    assert {"pytorch_cpu", "pytorch_cpu" + SHARED} <= names


@pytest.mark.parametrize("quick", [True, False])
def test_layers_of_vision_networks_are_found_again(machine: Machine, quick: bool) -> None:
    """Each group of constants has points enough, in either grid, and what made the times is found."""
    made = [vision for vision in kernels().values() if isinstance(vision, VisionKernel)]
    timed = [timing for kernel in made for timing in made_up(kernel, machine, quick=quick)]
    fitted = machine_fit.fitted(machine, timed, "made up")
    costs = CostModel(fitted)
    errors = np.abs([costs.time(item.op).seconds / item.seconds - 1 for item in timed])
    assert np.median(errors) < 0.02
    assert np.percentile(errors, 90) < 0.1


def test_attention_that_writes_its_scores_has_constants_of_its_own(machine: Machine) -> None:
    fitted = machine_fit.fitted(machine, made_up(TorchAttention(), machine), "made up")
    assert fitted.processor.fitted is not None
    assert "pytorch_cpu_vanilla" in fitted.processor.fitted.operators["attention"]


def test_collectives_make_a_link(machine: Machine) -> None:
    timed = made_up(TorchCollective(), machine)
    assert machine.process_link is None
    fitted = machine_fit.fitted(machine, timed, "made up")
    assert fitted.process_link is not None
    assert fitted.stack is not None
    assert fitted.stack.name == "pytorch_cpu"
    costs = CostModel(fitted)
    errors = [costs.time(item.op).seconds / item.seconds - 1 for item in timed]
    assert np.median(np.abs(errors)) < 0.1
    assert fitted.processor == machine.processor


def test_a_peak_is_at_least_the_best_product_of_all_processes(machine: Machine) -> None:
    op = Op(name="p", operator="gemm", account="compute", flops=1e9, shape=GemmShape(10, 10, 10), sharing=2)
    timed = [Timing.once(op, 1e-3, software="pytorch_cpu")]
    processor = machine_fit.with_peaks(machine.processor, timed)
    assert processor.datasheet.peak_flops_per_s["float32"] == 2e12
    assert machine_fit.with_peaks(processor, [timed[0]]) == processor


def test_other_constants_stay(machine: Machine) -> None:
    once = machine_fit.fitted(machine, made_up(TorchGemm(), machine), "made up")
    twice = machine_fit.fitted(once, made_up(TorchStream(), machine), "made up")
    assert once.processor.fitted is not None
    assert twice.processor.fitted is not None
    assert twice.processor.fitted.operators["gemm"] == once.processor.fitted.operators["gemm"]
    assert twice.processor.fitted.ops == machine.processor.fitted.ops  # type: ignore[union-attr]


def test_half_a_device_takes_twice_as_long_on_large_work(machine: Machine) -> None:
    costs = CostModel(machine)
    whole = Op(name="s", operator="memory_bound", account="compute", shape=MemoryBoundShape(1e9))
    half = Op(name="s", operator="memory_bound", account="compute", shape=MemoryBoundShape(1e9), sharing=2)
    machine_s, shared_s = costs.time(whole).seconds, costs.time(half).seconds
    assert shared_s == pytest.approx(2 * machine_s, rel=0.01)


# --- which parts are measured --------------------------------------------------------------------------------


def parts(only: str | None, *, quick: bool) -> tuple[tuple[str, ...], list[str]]:
    said: list[str] = []
    return session.parts_of(only, quick, said.append), said


def test_a_full_calibration_includes_training_where_pytorch_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.importlib.util, "find_spec", lambda name: object())
    found, said = parts(None, quick=False)
    assert found[:3] == ("storage", "memory", "compute")
    assert {"training", "link"} <= set(found[3:]) == set(host_timing.operator_parts())
    assert not said
    assert parts(None, quick=True) == (("storage", "memory", "compute"), [])


def test_without_pytorch_training_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.importlib.util, "find_spec", lambda name: None)
    found, said = parts(None, quick=False)
    others = [part for part, needs in host_timing.operator_parts().items() if not needs]
    assert others
    assert found == ("storage", "memory", "compute", *others)
    assert said == ["without torch, link, training, vision cannot be timed: left out"]


def test_parts_can_be_named() -> None:
    assert parts("training, link", quick=True)[0] == ("training", "link")


def test_training_alone_needs_a_machine_to_put_it_into(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="earlier full calibration"):
        this_host.calibrate(Settings(folder=tmp_path, only=("training",)))


def test_each_part_of_operators_has_a_round_of_its_own(tmp_path: Path) -> None:
    settings = Settings(folder=tmp_path, only=("storage", "link", "compute", "training"), operator_budget_s=7.0)
    own, *others = host_timing.rounds(settings)
    assert (own.only, own.budget_s) == (("storage", "compute"), settings.budget_s)
    passes = host_timing.OPERATOR_PASSES
    assert [(o.only, o.budget_s, o.passes) for o in others] == [
        (("link",), 7.0, passes),
        (("training",), 7.0, passes),
    ]


def test_a_part_is_what_a_kernel_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    class Astronomy(TorchCollective):
        calibrates = "astronomy"

    monkeypatch.setattr(host_timing, "kernels", lambda: {"astronomy": Astronomy()})
    host_timing.check_parts(["storage", "astronomy", "gpu"])
    with pytest.raises(UnknownName, match="did you mean 'astronomy'"):
        host_timing.check_parts(["astronmy"])


class Pretend(TorchCollective):
    """Times that need no process."""

    def timings(self, dims: Dims, context: KernelContext, *, repeats: int, budget_s: float) -> list[float]:
        return [1e-4 + dims["n_bytes"] / 1e9] * 3


def test_a_kernel_that_times_itself_ends_in_the_machine_file(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_timing, "kernels", lambda: {"pretend": Pretend()})
    monkeypatch.setattr(contention, "core_time", lambda: None)
    found = this_host.calibrate(Settings(folder=tmp_path, only=("link",)), base=machine)
    assert found.machine.process_link is not None
    assert found.machine.process_link.fitted is not None
    fit = found.machine.process_link.fitted.operators["collective"]["gloo"]
    assert fit.evidence.n_points == len(Pretend().grid(quick=False))
    assert fit.evidence.median_abs_error_frac < 0.1
    path = tmp_path / "machine.yaml"
    library.save_component(found.machine, path)
    read = library.load_machine(str(path)).process_link
    assert read is not None
    # files keep six digits
    rate = found.machine.process_link.datasheet.bandwidth_bytes_per_s
    assert read.datasheet.bandwidth_bytes_per_s == pytest.approx(rate, rel=1e-5)


@pytest.mark.parametrize(
    ("part", "op", "sentence"),
    [
        (
            "luck",
            Op(name="s", operator="copy", account="memory", bytes_read=1.0),
            "calibrates luck, but costs memory",
        ),
        ("luck", Op(name="s", operator="gemv", account="compute"), "no shape that a fitted law reads"),
        (
            "memory",
            Op(name="s", operator="gemm", account="compute", shape=GemmShape(1.0, 1.0, 1.0)),
            "calibrates memory, but costs compute",
        ),
    ],
)
def test_a_kernel_whose_timings_nothing_is_fitted_to_is_refused_before_it_is_timed(
    part: str, op: Op, sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernel = type("Lucky", (TorchStream,), {"calibrates": part, "cost": lambda self, dims: op})()
    monkeypatch.setattr(host_timing, "kernels", lambda: {"lucky": kernel})
    with pytest.raises(ConfigError, match=f"kernel '{kernel.name}' .*{sentence}"):
        this_host.calibrate(Settings(folder=tmp_path, only=(part,)))
