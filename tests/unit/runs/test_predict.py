"""Scenario and machine to metrics: names, units, intervals, memory, warnings."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any, ClassVar

import pytest

from sandtable import units
from sandtable.demand.op import Op, sequential_read
from sandtable.demand.plan import Phase, Plan, Step
from sandtable.engine.plan_process import process_of
from sandtable.engine.recorder import Recorder, StepResult
from sandtable.engine.world import Options
from sandtable.errors import DoesNotFit
from sandtable.hardware import Frozen, Machine, Power, Price
from sandtable.results import Prediction
from sandtable.runs import predict, reduction
from sandtable.workload import scenarios
from sandtable.workload.seam import Execution, ExecutionContext, Scenario, Workload


class Nothing(Frozen):
    """No parameters but the size of what is kept."""

    held: float = 1e9
    repeat: int = 4


class MadeUp(Workload[Nothing]):
    """A prefill and a few equal tokens."""

    name: ClassVar[str] = "made_up"
    parameters: ClassVar[type[Frozen]] = Nothing
    priced_unit: ClassVar[tuple[str, float] | None] = ("mtok", 1e6)

    def plan(self, parameters: Nothing, machine: Machine, seed: int) -> Plan:
        read = sequential_read("weights", n_bytes=6.05e9 / 10, chunk_bytes=1 << 20, concurrency=4)
        work = Op(name="work", operator="gemv", account="compute", bytes_read=1e9)
        token = Step(name="token", ops=(read, work), repeat=parameters.repeat, counters={"hit_frac": 0.5})
        phases = (Phase(name="prefill", steps=(Step(name="prompt", ops=(work, work)),)),)
        return Plan(
            workload=self.name,
            phases=(*phases, Phase(name="decode", steps=(token,))),
            main_phase="decode",
            memory_bytes={"weights": 0.75 * parameters.held, "cache": 0.25 * parameters.held},
            work_unit="token",
            sums={"ttft_s": ("prefill", "decode")},
            notes=("a note of the plan",),
        )

    def execute(self, parameters: Nothing, machine: Machine, seed: int, context: ExecutionContext) -> Execution:
        raise NotImplementedError

    def example(self) -> dict[str, Any]:
        return {}


WORK = 10e-6 + 0.1
READ = 118e-6 + 0.1


def predicted(machine: Machine, options: Options | None = None, **parameters: Any) -> Prediction:
    scenario = Scenario(name="made_up", title="Made up", workload="made_up", seed=7)
    return predict.predict(scenario, MadeUp(), Nothing(**parameters), machine, options)[0]


def test_metrics_by_hand(machine: Machine) -> None:
    metrics = predicted(machine).metrics
    assert metrics["latency_s.mean"].value == pytest.approx(WORK + READ)
    assert metrics["io_s.mean"].value == pytest.approx(READ)
    assert metrics["compute_s.mean"].value == pytest.approx(WORK)
    assert metrics["prefill_s"].value == pytest.approx(2 * WORK)
    assert metrics["ttft_s"].value == pytest.approx(3 * WORK + READ)
    assert metrics["tokens_per_s"].value == pytest.approx(1 / (WORK + READ))
    assert metrics["peak_memory_bytes"].value == 1e9
    assert metrics["bytes_read.mean"].value == pytest.approx(6.05e8)
    assert metrics["hit_frac.p95"].value == 0.5


def test_names_and_units(machine: Machine) -> None:
    metrics = predicted(machine).metrics
    distributed = ("latency_s", "io_s", "compute_s", "bytes_read", "n_requests", "hit_frac")
    expected = {f"{name}.{statistic}" for name in distributed for statistic in ("mean", "p50", "p90", "p95", "p99")}
    assert set(metrics) == expected | {"prefill_s", "ttft_s", "tokens_per_s", "peak_memory_bytes"}
    for name, metric in metrics.items():
        assert metric.unit == units.unit_of(name)
    assert {metrics[name].unit for name in ("latency_s.p95", "prefill_s", "ttft_s")} == {"s"}
    assert metrics["bytes_read.mean"].unit == "bytes"
    assert metrics["tokens_per_s"].unit == "tokens/s"


def test_every_interval_holds_its_value(machine: Machine) -> None:
    metrics = predicted(machine).metrics
    for name, metric in metrics.items():
        assert metric.low <= metric.value <= metric.high, name
    latency, rate = metrics["latency_s.mean"], metrics["tokens_per_s"]
    assert latency.low < latency.value < latency.high
    assert (rate.low, rate.high) == pytest.approx((1 / latency.high, 1 / latency.low))


def test_a_single_step_has_no_percentiles(machine: Machine) -> None:
    metrics = predicted(machine, repeat=1).metrics
    assert "latency_s" in metrics
    assert "latency_s.mean" not in metrics
    assert metrics["tokens_per_s"].value == pytest.approx(1 / metrics["latency_s"].value)


def test_the_breakdown_adds_up(machine: Machine) -> None:
    found = predicted(machine)
    assert found.breakdown == pytest.approx({"io": READ, "compute": WORK})
    assert found.binding_resource == "io"
    assert found.by_op == pytest.approx({"work": 6 * WORK, "weights": 4 * READ})
    assert list(found.by_op) == ["work", "weights"]  # the largest first


def test_a_price_and_a_power_add_metrics(machine: Machine) -> None:
    changes = {"price": Price(usd_per_h=3.6, as_of=dt.date(2026, 1, 1)), "power": Power(idle_w=10.0, max_w=30.0)}
    metrics = predicted(machine.model_copy(update=changes)).metrics
    assert metrics["usd_per_h"].value == 3.6
    assert metrics["usd_per_mtok"].value == pytest.approx(1e6 * (WORK + READ) * 0.001)
    assert metrics["energy_j"].value == pytest.approx(10 * (WORK + READ) + 20 * WORK)


def test_the_prediction_says_what_it_was_made_from(machine: Machine) -> None:
    found = predicted(machine)
    assert found.scenario["name"] == "made_up"
    assert found.scenario["seed"] == 7
    assert found.scenario["schema"] == 1
    assert found.scenario["parameters"] == {"held": 1e9, "repeat": 4}
    assert found.machine == "test_machine"
    assert len(found.machine_digest) == 12
    assert found.machine_digest != predicted(machine.model_copy(update={"title": "Another"})).machine_digest
    assert found.memory == {"weights": 0.75e9, "cache": 0.25e9}
    assert found.kind == "prediction"


def test_warnings_name_what_makes_it_less_certain(machine: Machine) -> None:
    assert predicted(machine).warnings == ("a note of the plan",)
    assert predicted(machine).guesses == ()
    guessed = machine.memory.model_copy(update={"sources": {"datasheet": "guess", "fitted": "made up"}})
    found = predicted(machine.model_copy(update={"memory": guessed}))
    assert found.guesses == ("test_memory: datasheet.capacity", "test_memory: datasheet.bandwidth")
    assert any("2 numbers of this machine are guesses" in warning for warning in found.warnings)


def test_a_timeline_comes_with_the_trace_option_alone(machine: Machine) -> None:
    scenario = Scenario(name="made_up", title="Made up", workload="made_up")
    arguments = (scenario, MadeUp(), Nothing(), machine)
    assert predict.predict(*arguments)[1] == []
    assert len(predict.predict(*arguments, Options(trace=True))[1]) > 0


def test_too_much_for_the_memory_says_what_takes_how_much(machine: Machine) -> None:
    words = r"made_up needs 93.1 GiB of memory and test_machine has 59.6 GiB \(weights 69.8 GiB, cache 23.3 GiB\)"
    with pytest.raises(DoesNotFit, match=words):
        predicted(machine, held=100e9)


def test_the_same_scenario_gives_the_same_prediction(machine: Machine) -> None:
    assert predicted(machine) == predicted(machine)
    assert predicted(machine, Options(expand=True)).metrics == predicted(machine).metrics


# --- collecting --------------------------------------------------------------------------------------------


def step(phase: str, seconds: float, **changes: Any) -> StepResult:
    values: dict[str, Any] = {"name": "x", "total_s": seconds, "by_account": {"io": seconds, "compute": 0.0}}
    return StepResult(phase=phase, **(values | changes))


def collected(steps: list[StepResult], plan: Plan) -> dict[str, reduction.Samples]:
    return reduction.collect(Recorder.of(steps), process_of(plan))


def test_collecting_by_hand(machine: Machine) -> None:
    plan = dataclasses.replace(
        MadeUp().plan(Nothing(), machine, 0),
        phases=tuple(Phase(name=name, steps=()) for name in ("prefill", "cold", "decode")),
        sums={"ttft_s": ("prefill", "cold")},
    )
    steps = [step("prefill", 5.0), step("cold", 3.0), step("cold", 2.0), step("decode", 1.0), step("decode", 1.5)]
    found = {name: list(samples.value) for name, samples in collected(steps, plan).items()}
    # an account that is never used is no metric; the first token is a cold one
    assert found == {
        "latency_s": [1.0, 1.5],
        "io_s": [1.0, 1.5],
        "prefill_s": [5.0],
        "cold_s": [2.5],
        "ttft_s": [8.0],
    }


def test_measured_steps_are_their_own_interval(machine: Machine) -> None:
    plan = MadeUp().plan(Nothing(), machine, 0)
    samples = collected([step("decode", 1.0), step("decode", 2.0)], plan)["latency_s"]
    assert list(samples.low) == list(samples.value) == list(samples.high) == [1.0, 2.0]


def test_only_what_a_plan_uses_makes_it_less_certain() -> None:
    """Training on accelerators rests neither on the host's storage and memory, nor on shares of a data sheet."""
    case = scenarios.load("slm_100m_a100")
    found, _, _ = predict.predict(case.scenario, case.workload, case.parameters, case.machine)
    said = " ".join((*found.warnings, *found.guesses))
    assert "not calibrated" not in said
    assert "nvidia_a100_sxm_40gb: datasheet.clock" in found.guesses
    for part in (case.machine.processor, case.machine.memory, case.machine.storage):
        assert part.name not in said
    assert "efficiency.default" not in said
