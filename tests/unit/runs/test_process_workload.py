"""A workload that is a process: the same road from prediction to comparison as a plan's."""

from __future__ import annotations

import datetime as dt
import math
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sandtable import contracts
from sandtable.demand.op import Op
from sandtable.engine.process import Body, Process
from sandtable.engine.recorder import Recorder
from sandtable.engine.world import Options, World
from sandtable.errors import PlanError
from sandtable.hardware import Frozen, Machine, Power, Price
from sandtable.runs import check, measure, predict
from sandtable.studies import paired
from sandtable.workload.scenarios import Case
from sandtable.workload.seam import Execution, ExecutionContext, Scenario, Workload

OP = Op(name="answer", operator="gemv", account="compute", bytes_read=1e8)
C = 10e-6 + 1e8 / 10e9  # on the test machine, 10 % either way


class Arrivals(Frozen):
    """How many requests come, and how fast."""

    n: int = 200
    per_s: float = 50.0


class Serving(Workload[Arrivals]):
    """Requests that arrive at random, and queue for the processor."""

    name: ClassVar[str] = "serving_made_up"
    parameters: ClassVar[type[Frozen]] = Arrivals
    priced_unit: ClassVar[tuple[str, float] | None] = ("krequest", 1e3)

    def process(self, parameters: Arrivals, machine: Machine, seed: int) -> Process:
        def body(world: World) -> Body:
            def request() -> Body:
                arrived_s = world.now
                start_s = yield world.serve(OP)
                world.record("request", arrived_s, counters={"wait_s": start_s - arrived_s, "tokens": 3.0})

            for _ in range(parameters.n):
                yield world.sleep(world.rng.exponential(1 / parameters.per_s))
                world.spawn(request())

        return Process(
            workload=self.name,
            body=body,
            main_unit="request",
            work_unit="request",
            memory_bytes={"weights": 1e6},
        )

    def execute(self, parameters: Arrivals, machine: Machine, seed: int, context: ExecutionContext) -> Execution:
        recorder, begin = Recorder(), time.perf_counter()
        for _ in range(parameters.n):
            start = time.perf_counter() - begin
            latency = max(time.perf_counter() - begin - start, 1e-9)
            recorder.record("request", {"latency_s": latency, "wait_s": 0.0, "tokens": 3.0}, start_s=start)
        return Execution(recorder=recorder, memory_bytes={"weights": 1e6})

    def example(self) -> dict[str, Any]:
        return {"n": 20}


def scenario() -> Scenario:
    return Scenario(name="made_up", title="Made up", workload=Serving.name, seed=3, repeats=2)


def predicted(machine: Machine, options: Options | None = None, **changes: Any) -> tuple[Any, ...]:
    return predict.predict(scenario(), Serving(), Arrivals(**changes), machine, options)


def test_latency_is_a_distribution_and_the_rate_is_by_the_clock(machine: Machine) -> None:
    prediction, _, run = predicted(machine)
    metrics = prediction.metrics
    assert metrics["latency_s.p50"].value >= C
    assert metrics["latency_s.p99"].value > metrics["latency_s.p90"].value > metrics["latency_s.p50"].value
    assert metrics["latency_s.mean"].value == pytest.approx(metrics["wait_s.mean"].value + C)
    assert metrics["makespan_s"].value == run.total_s
    assert metrics["requests_per_s"].value == pytest.approx(200 / run.total_s)
    assert metrics["tokens.mean"].value == 3.0
    assert metrics["peak_memory_bytes"].value == 1e6
    assert prediction.breakdown == pytest.approx({"compute": C})
    assert prediction.by_op == pytest.approx({"answer": 200 * C})


def test_waiting_is_far_less_certain_than_service(machine: Machine) -> None:
    """Near saturation, service a tenth longer makes waiting several times as long: no sum of ops shows that."""
    metrics = predicted(machine, per_s=85.0, n=2000)[0].metrics
    wait, whole = metrics["wait_s.mean"], metrics["makespan_s"]
    assert wait.low < 0.8 * wait.value
    assert wait.high > 1.5 * wait.value
    # but as many come in as before
    assert whole.high < 1.1 * whole.value
    for metric in metrics.values():
        assert metric.low <= metric.value <= metric.high


def test_queues_make_ratios_far_less_certain_than_service(machine: Machine) -> None:
    """Errors of the op are the same at both ends: what is left is by how much more the fuller queue makes of them."""

    def foreseen(per_s: float) -> predict.Foreseen:
        return predict.foresee(scenario(), Serving(), Arrivals(per_s=per_s, n=2000), machine)

    calm, busy, full = foreseen(20.0), foreseen(60.0), foreseen(85.0)
    # the theory of a queue with one server: waiting rises by the square of service over what is left idle
    assert 1 < calm.slopes["latency_s.mean"] < busy.slopes["latency_s.mean"] < full.slopes["latency_s.mean"]
    assert calm.slopes["tokens.mean"] == 0
    mild, steep = (paired.changes(calm, other)["latency_s.mean"] for other in (busy, full))
    assert 1 < mild.ratio_low < mild.ratio < mild.ratio_high
    assert math.log(steep.ratio_high / steep.ratio_low) > 2 * math.log(mild.ratio_high / mild.ratio_low)
    same = paired.changes(full, full)["latency_s.mean"]
    assert (same.ratio_low, same.ratio_high) == (1, 1)
    assert paired.changes(calm, full)["tokens.mean"].ratio_high == 1


def test_cost_follows_the_clock(machine: Machine) -> None:
    changes = {"price": Price(usd_per_h=3.6, as_of=dt.date(2026, 1, 1)), "power": Power(idle_w=10.0, max_w=30.0)}
    prediction, _, run = predicted(machine.model_copy(update=changes))
    metrics = prediction.metrics
    assert metrics["usd_per_krequest"].value == pytest.approx(1e3 * run.total_s / 200 * 1e-3)
    assert metrics["usd_per_krequest"].unit == "USD/krequest"
    assert metrics["energy_j"].value == pytest.approx(10 * run.total_s / 200 + 20 * C)
    derived = {name for name, metric in metrics.items() if metric.derived}
    assert derived == {"requests_per_s", "usd_per_h", "usd_per_krequest", "energy_j"}


def test_it_has_no_plan_and_says_so(machine: Machine) -> None:
    with pytest.raises(PlanError, match="depends on what happens while it runs"):
        Serving().plan(Arrivals(), machine, 1)


def test_a_process_that_records_nothing_is_told_so(machine: Machine) -> None:
    with pytest.raises(PlanError, match="serving_made_up reports units 'request' and recorded nothing"):
        predicted(machine, n=0)


def test_an_execution_says_when_its_units_began(machine: Machine, tmp_path: Path) -> None:
    class Timeless(Serving):
        def execute(self, *_: Any) -> Execution:
            recorder = Recorder()
            recorder.record("request", {"latency_s": 1.0, "wait_s": 0.5, "tokens": 3.0}, times=20)
            return Execution(recorder=recorder, memory_bytes={"weights": 1e6})

    with pytest.raises(AssertionError, match="does not say when it began"):
        contracts.check_workload(Timeless(), machine, ExecutionContext(folder=tmp_path, n_threads=1))


def test_it_keeps_the_contract(machine: Machine, tmp_path: Path) -> None:
    checked = contracts.check_workload(Serving(), machine, ExecutionContext(folder=tmp_path, n_threads=1))
    assert checked.execution is not None
    assert len(checked.execution.recorder) == len(checked.predicted.recorder) == 20


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"latency_s": 1.0, "wait_s": 0.5}, "predicted but not measured: tokens"),
        ({"latency_s": 1.0, "wait_s": 0.5, "tokens": 3.0, "io_s": 0.1}, "measured but not predicted: io_s"),
        ({"latency_s": 1.0, "wait_s": 0.5, "tokens": 3.0, "bytes_read": 1.0}, "plans bytes_read 0 and counts 20"),
    ],
)
def test_an_execution_that_differs_is_found(
    row: dict[str, float], sentence: str, machine: Machine, tmp_path: Path
) -> None:
    class Differing(Serving):
        def execute(self, *_: Any) -> Execution:
            recorder = Recorder()
            recorder.record("request", row, times=20, start_s=0.0)
            return Execution(recorder=recorder, memory_bytes={"weights": 1e6})

    with pytest.raises(AssertionError, match=sentence):
        contracts.check_workload(Differing(), machine, ExecutionContext(folder=tmp_path, n_threads=1))


def test_it_is_predicted_run_and_compared(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "probe", lambda *_: {})
    case = Case(scenario=scenario(), workload=Serving(), parameters=Arrivals(), machine=machine)
    context = ExecutionContext(folder=tmp_path, n_threads=1)
    comparison, checked, _ = check.check([case], context, name="serving")
    rows = {row.metric: row for row in comparison.comparisons}
    assert {"latency_s.mean", "latency_s.p99", "makespan_s", "requests_per_s", "tokens.mean"} <= set(rows)
    assert rows["requests_per_s"].derived
    assert not rows["makespan_s"].derived
    measured = checked[0].measurement
    assert measured is not None
    assert len(measured.metrics["makespan_s"].samples) == 2
    assert len(measured.metrics["latency_s.mean"].samples) == 400


def test_a_timeline_comes_with_the_trace_option(machine: Machine) -> None:
    assert predicted(machine)[1] == []
    rows = predicted(machine, Options(trace=True), n=10)[1]
    assert [row.name for row in rows] == ["answer"] * 10
