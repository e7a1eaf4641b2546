"""What one operation costs, against arithmetic done by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable.demand.op import Op, random_read, sequential_read
from sandtable.demand.operator import PlainOperator, operators
from sandtable.demand.operator_shapes import GemmShape
from sandtable.errors import PlanError
from sandtable.hardware import (
    Accelerator,
    Accelerators,
    Link,
    LinkDatasheet,
    Machine,
    MemoryDatasheet,
    OpEfficiency,
    ProcessorDatasheet,
    Stack,
    StackDatasheet,
    library,
)
from sandtable.model.cost_model import CostModel
from sandtable.model.laws import storage_law as storage_model

COMPUTE = sorted(
    name
    for name, operator in operators().items()
    if isinstance(operator, PlainOperator) and operator.resource == "compute"
)
MACHINES = ("laptop_pcie4", "desktop_rtx4090", "apple_m1_max_metal", "aws_p5_48xlarge")
COSTS = {name: CostModel(library.load_machine(name)) for name in MACHINES}


def op(operator: str = "gemv", **changes: Any) -> Op:
    values: dict[str, Any] = {
        "name": "x",
        "operator": operator,
        "account": "compute",
        "bytes_read": 1e6,
        "flops": 1e6,
    }
    return Op(**(values | changes))


def stack(efficiency: dict[str, OpEfficiency], **changes: Any) -> Stack:
    values: dict[str, Any] = {"version": "1", "residual_low_frac": 0.5, "residual_high_frac": 2.0}
    return Stack(
        kind="stack",
        name="made_up",
        title="Made up",
        datasheet=StackDatasheet(efficiency=efficiency, **(values | changes)),
        sources={"datasheet": "made up"},
    )


@pytest.fixture
def uncalibrated(machine: Machine) -> Machine:
    """The test machine from its data sheets: 20 GB/s, 100 GFLOP/s in float32."""
    half = OpEfficiency(bandwidth_frac=0.5, rate_frac=0.5)
    return machine.model_copy(
        update={
            "processor": machine.processor.model_copy(update={"fitted": None}),
            "memory": machine.memory.model_copy(update={"fitted": None}),
            "stack": stack({"default": half}),
        }
    )


@pytest.fixture
def accelerated(uncalibrated: Machine) -> Machine:
    """With an accelerator of 1 TB/s and 10 TFLOP/s behind a link of 10 GB/s."""
    sheet = ProcessorDatasheet(family="gpu", cores=10, peak_flops_per_s={"float32": 1e13, "bfloat16": 1e14})
    memory = MemoryDatasheet(technology="HBM", capacity_bytes=80e9, bandwidth_bytes_per_s=1e12)
    link = Link(
        kind="link",
        name="test_link",
        title="A link",
        datasheet=LinkDatasheet(scope="host", bandwidth_bytes_per_s=10e9, latency_s=5e-6),
        sources={"datasheet": "made up"},
    )
    device = Accelerator(
        kind="accelerator",
        name="test_gpu",
        title="A GPU",
        datasheet=sheet,
        memory=uncalibrated.memory.model_copy(update={"name": "test_hbm", "datasheet": memory}),
        link=link,
        sources={"datasheet": "made up"},
    )
    return uncalibrated.model_copy(update={"accelerator": Accelerators(device=device)})


# --- calibrated --------------------------------------------------------------------------------------------


def test_a_fitted_law_by_hand(machine: Machine) -> None:
    # 10 us overhead, 10 GB/s, both ways counted; residuals 0.9 and 1.1
    time = CostModel(machine).time(op(bytes_read=60e6, bytes_written=40e6, flops=1e15))
    assert time.seconds == pytest.approx(10e-6 + 100e6 / 10e9)
    assert time.low == pytest.approx(time.seconds / 1.1)
    assert time.high == pytest.approx(time.seconds / 0.9)
    assert time.host_s == 0


def test_a_fitted_law_takes_the_slower_of_moving_and_computing(machine: Machine) -> None:
    law = machine.processor.fitted.ops["gemm"]["float32"]  # type: ignore[union-attr]
    both = law.model_copy(
        update={
            "rate_flops_per_s": law.bandwidth_bytes_per_s.model_copy(
                update=dict.fromkeys(("value", "low", "high"), 1e11)
            ),  # type: ignore[union-attr]
            "per_item_s": law.overhead_s.model_copy(update=dict.fromkeys(("value", "low", "high"), 1e-6)),
        }
    )
    fitted = machine.processor.fitted.model_copy(update={"ops": {"gemm": {"float32": both}}})  # type: ignore[union-attr]
    costs = CostModel(
        machine.model_copy(update={"processor": machine.processor.model_copy(update={"fitted": fitted})})
    )
    streaming = costs.time(op("gemm", bytes_read=1e8, flops=1e8, n_items=7))
    computing = costs.time(op("gemm", bytes_read=1e7, flops=1e10, n_items=7))
    assert streaming.seconds == pytest.approx(10e-6 + 7e-6 + 1e8 / 10e9)
    assert computing.seconds == pytest.approx(10e-6 + 7e-6 + 1e10 / 1e11)


def test_storage_takes_the_storage_law(machine: Machine) -> None:
    costs = CostModel(machine)
    read = costs.time(random_read("r", n_chunks=400, chunk_bytes=16384, concurrency=32))
    assert read.seconds == storage_model.batch_s(costs.storage_law, 400, 16384.0, 32)
    stream = costs.time(sequential_read("s", n_bytes=1e9, chunk_bytes=8 << 20, concurrency=4))
    assert stream.seconds == pytest.approx(118e-6 + 1e9 / 6.05e9)
    assert costs.time(random_read("r", n_chunks=0, chunk_bytes=16384, concurrency=32)).seconds == 0


@given(st.integers(1, 1000))
def test_repeats_are_served_one_after_another(n: int) -> None:
    costs = COSTS["laptop_pcie4"]
    once, often = costs.time(op()), costs.time(op(repeat=n))
    assert often.seconds == pytest.approx(n * once.seconds)
    assert often.low == pytest.approx(n * once.low)
    assert often.high == pytest.approx(n * once.high)


def test_names_and_accounts_do_not_change_a_cost(machine: Machine) -> None:
    costs = CostModel(machine)
    first = costs.time(op())
    assert costs.time(op(name="other", account="memory", after=())) == first
    # this machine's laws are equal for all types, but they are not the same law
    other = costs.time(op(dtype="float16"))
    assert dataclasses.replace(other, law=first.law, source=first.source) == first
    assert other.law != first.law


# --- from data sheets --------------------------------------------------------------------------------------


def test_a_data_sheet_by_hand(uncalibrated: Machine) -> None:
    costs = CostModel(uncalibrated)
    # half of 20 GB/s, half of 100 GFLOP/s
    assert costs.time(op(bytes_read=1e9, flops=0.0)).seconds == pytest.approx(0.1)
    assert costs.time(op(bytes_read=1.0, flops=1e10)).seconds == pytest.approx(0.2)
    time = costs.time(op(bytes_read=1e9, flops=1e8))
    assert (time.low, time.high) == pytest.approx((0.1 / 2, 0.1 / 0.5))


def test_a_stack_states_overhead_items_traffic_and_calls(uncalibrated: Machine) -> None:
    special = OpEfficiency(
        bandwidth_bytes_per_s=5e9, overhead_s=1e-3, per_item_s=1e-4, traffic=2.0, calls=3, rate_frac=1.0
    )
    chosen = stack({"gemv": special, "default": OpEfficiency()}, host_call_s=1e-2, dynamic_shape_s=0.5)
    costs = CostModel(uncalibrated.model_copy(update={"stack": chosen}))
    static = costs.time(op(bytes_read=5e9, n_items=10)).seconds
    assert static == pytest.approx(1e-3 + 10 * 1e-4 + 2 * 5e9 / 5e9 + 3 * 1e-2)
    assert costs.time(op(bytes_read=5e9, n_items=10, dynamic=True)).seconds == pytest.approx(static + 0.5)


def test_the_closest_entry_of_a_stack_counts(uncalibrated: Machine) -> None:
    entries = {"gemv.float16": 5e9, "gemv": 10e9, "default": 20e9}
    chosen = stack({key: OpEfficiency(bandwidth_bytes_per_s=rate) for key, rate in entries.items()})
    costs = CostModel(uncalibrated.model_copy(update={"stack": chosen}))
    demands = (op(dtype="float16"), op(dtype="float32"), op("gemm"))
    seconds = [costs.time(dataclasses.replace(demand, bytes_read=1e10, flops=0.0)).seconds for demand in demands]
    assert seconds == pytest.approx([2.0, 1.0, 0.5])


def test_a_host_that_queues_ahead_is_hidden(uncalibrated: Machine) -> None:
    busy: dict[str, Any] = {"efficiency": {"default": OpEfficiency(calls=2)}, "host_call_s": 1e-3}
    waits = CostModel(uncalibrated.model_copy(update={"stack": stack(**busy)})).time(op())
    ahead = CostModel(uncalibrated.model_copy(update={"stack": stack(**busy, overlaps_host=True)})).time(op())
    assert waits.host_s == 0
    assert ahead.host_s == pytest.approx(2e-3)
    assert waits.seconds == pytest.approx(ahead.seconds + ahead.host_s)


def test_a_narrow_type_without_units_runs_in_a_wider_one(uncalibrated: Machine) -> None:
    costs = CostModel(uncalibrated)
    narrow, wide = (costs.time(op(dtype=dtype, flops=1e10)) for dtype in ("float16", "float32"))
    assert dataclasses.replace(narrow, source=wide.source) == wide


def test_the_accelerator_serves_what_runs_on_it(accelerated: Machine) -> None:
    costs = CostModel(accelerated)
    assert costs.time(op(bytes_read=1e9, flops=0.0, on="accelerator")).seconds == pytest.approx(1e9 / 0.5e12)
    assert costs.time(op(bytes_read=1e9, flops=0.0)).seconds == pytest.approx(1e9 / 10e9)
    computing = op("gemm", flops=1e13, dtype="bfloat16", on="accelerator")
    assert costs.time(computing).seconds == pytest.approx(1e13 / 0.5e14)


def test_a_transfer_by_hand(accelerated: Machine) -> None:
    transfer = op("transfer", bytes_read=1e9, flops=0.0, on="accelerator")
    assert CostModel(accelerated).time(transfer).seconds == pytest.approx(5e-6 + 1e9 / 5e9)


# --- laws --------------------------------------------------------------------------------------------------

sizes = st.floats(0, 1e12, allow_nan=False)


@given(
    name=st.sampled_from(MACHINES),
    kind=st.sampled_from(COMPUTE),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    n_bytes=sizes,
    more_bytes=sizes,
    flops=sizes,
    more_flops=sizes,
)
def test_more_work_never_takes_less_time(
    name: str, kind: str, dtype: str, n_bytes: float, more_bytes: float, flops: float, more_flops: float
) -> None:
    costs = COSTS[name]
    small = costs.time(op(kind, dtype=dtype, bytes_read=n_bytes, flops=flops))
    large = costs.time(op(kind, dtype=dtype, bytes_read=n_bytes + more_bytes, flops=flops + more_flops))
    assert small.low <= small.seconds <= small.high
    assert small.seconds <= large.seconds


@given(
    n_chunks=st.integers(0, 5000),
    more=st.integers(0, 5000),
    chunk=st.sampled_from([4096, 16384, 131072]),
    lanes=st.integers(1, 64),
)
def test_reading_more_never_takes_less_time(n_chunks: int, more: int, chunk: int, lanes: int) -> None:
    costs = COSTS["laptop_pcie4"]
    less = costs.time(random_read("r", n_chunks=n_chunks, chunk_bytes=chunk, concurrency=lanes))
    all_of_it = costs.time(random_read("r", n_chunks=n_chunks + more, chunk_bytes=chunk, concurrency=lanes))
    assert less.low <= less.seconds <= less.high
    assert less.seconds <= all_of_it.seconds * (1 + 1e-9)


@given(factor=st.floats(1, 100), n_bytes=sizes, flops=sizes, kind=st.sampled_from(COMPUTE))
def test_a_faster_device_is_never_slower(factor: float, n_bytes: float, flops: float, kind: str) -> None:
    slow = COSTS["laptop_pcie4"].machine
    memory, processor = slow.memory.datasheet, slow.processor.datasheet
    peaks = {dtype: rate * factor for dtype, rate in processor.peak_flops_per_s.items()}
    bandwidth = {"bandwidth_bytes_per_s": memory.bandwidth_bytes_per_s * factor}
    parts = {
        "memory": slow.memory.model_copy(update={"datasheet": memory.model_copy(update=bandwidth)}),
        "processor": slow.processor.model_copy(
            update={"datasheet": processor.model_copy(update={"peak_flops_per_s": peaks})}
        ),
    }
    demand = op(kind, bytes_read=n_bytes, flops=flops)
    fast = CostModel(slow.model_copy(update=parts))
    assert fast.time(demand).seconds <= CostModel(slow).time(demand).seconds


# --- what cannot be ----------------------------------------------------------------------------------------


def test_without_a_law_or_a_stack_there_is_no_answer(machine: Machine) -> None:
    with pytest.raises(PlanError, match="'test_machine' has no fit for 'host' and no 'stack'"):
        CostModel(machine).time(op("host"))


def test_a_stack_that_says_nothing_of_a_kind(uncalibrated: Machine) -> None:
    costs = CostModel(uncalibrated.model_copy(update={"stack": stack({"gemm": OpEfficiency()})}))
    with pytest.raises(PlanError, match="stack 'made_up' says nothing of 'gemv'"):
        costs.time(op("gemv"))


@pytest.mark.parametrize(("kind", "words"), [("transfer", "to transfer to"), ("gemv", "to run 'gemv' on")])
def test_without_an_accelerator_nothing_runs_on_one(uncalibrated: Machine, kind: str, words: str) -> None:
    with pytest.raises(PlanError, match=f"'test_machine' has no accelerator {words}"):
        CostModel(uncalibrated).time(op(kind, on="accelerator"))


def test_arithmetic_in_a_type_that_no_unit_is_wide_enough_for(accelerated: Machine) -> None:
    gpu = accelerated.accelerator
    assert gpu is not None
    narrow = gpu.processor.datasheet.model_copy(update={"peak_flops_per_s": {"int8": 1e12}})
    device = gpu.device.model_copy(update={"datasheet": narrow})
    machine = accelerated.model_copy(update={"accelerator": gpu.model_copy(update={"device": device})})
    with pytest.raises(PlanError, match="'test_gpu' states no arithmetic rate for float32"):
        CostModel(machine).time(op(on="accelerator"))


def test_an_unknown_kind_is_named_in_the_error(machine: Machine) -> None:
    with pytest.raises(PlanError, match=r"operator 'gemw' \(did you mean 'gemv'"):
        CostModel(machine).time(op("gemw"))


def test_a_drive_without_law_or_likeness(machine: Machine) -> None:
    bare = machine.model_copy(update={"storage": machine.storage.model_copy(update={"fitted": None})})
    with pytest.raises(PlanError, match="'test_storage' has neither a 'fitted' block nor"):
        CostModel(bare)


def test_a_type_that_software_multiplies_in_a_way_of_its_own_has_constants_of_its_own() -> None:
    machine = library.load_machine("dgx_b200", {"stack": "vllm"})
    product = op(
        "gemm", on="accelerator", bytes_read=0, flops=0, shape=GemmShape(64.0, 4096.0, 4096.0), dtype="fp8_block"
    )
    assert machine.stack is not None
    named = machine.stack.model_copy(update={"software": {"gemm.fp8_block": "vllm_fp8_block"}})
    apart = CostModel(machine.model_copy(update={"stack": named}))
    same_calls, own_calls = CostModel(machine).time(product), apart.time(product)
    # issued from Python, far longer than the device takes
    assert own_calls.seconds > 5 * same_calls.seconds
    other = dataclasses.replace(product, dtype="fp8")
    assert apart.time(other).seconds == CostModel(machine).time(other).seconds


def test_the_host_issues_the_products_of_experts_one_by_one() -> None:
    machine = library.load_machine("dgx_h100", {"stack": "megatron_te"})
    costs = CostModel(machine)
    one, many = (costs.issue_s("gemm", GemmShape(64.0, 4096.0, 4096.0, batch)) for batch in (1.0, 16.0))
    assert one > 0
    assert many == pytest.approx(16 * one)
