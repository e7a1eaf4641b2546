"""Dense inference by its bounds: bytes read, bandwidth, and what more bits or less memory do."""

from __future__ import annotations

from typing import Any

import pytest

from sandtable import units
from sandtable.demand.plan import Plan
from sandtable.errors import DoesNotFit
from sandtable.hardware import Machine, library
from sandtable.model.cost_model import CostModel
from sandtable_workloads.flash.dense.dense_choice import setup_of
from sandtable_workloads.flash.dense.dense_demand import checked, dense_plan
from sandtable_workloads.flash.dense.weight_types import WEIGHT_TYPES
from sandtable_workloads.flash.flash_parameters import FlashInference
from sandtable_workloads.flash.machine_memory import GIB, Room, reserve_of

LAPTOP = library.load_machine("laptop_pcie4")


def parameters(**changes: Any) -> FlashInference:
    return FlashInference.model_validate({"model": "llama_2_7b"} | changes, context=units.AT_EDGE)


def laptop(gib: float) -> Machine:
    sheet = LAPTOP.memory.datasheet.model_copy(update={"capacity_bytes": gib * GIB})
    return LAPTOP.model_copy(update={"memory": LAPTOP.memory.model_copy(update={"datasheet": sheet})})


def token_s(plan: Plan, machine: Machine) -> float:
    costs = CostModel(machine)
    return sum(costs.time(op).seconds for op in plan.phase("decode").steps[0].ops)


def test_what_is_read_per_token_is_what_is_not_kept() -> None:
    chosen = parameters(model="llama_2_13b")
    setup, plan = setup_of(chosen, laptop(8)), dense_plan(chosen, laptop(8))
    read = sum(op.bytes_read for op in plan.phase("decode").steps[0].ops if op.resource == "storage")
    kept = sum(setup.memory().get(kind, 0) for kind in ("attention", "feed-forward", "embeddings"))
    assert 0 < read == setup.streamed_bytes == setup.layout.n_bytes - kept


def test_with_all_in_memory_the_bandwidth_is_the_bound() -> None:
    chosen = parameters(weights="q8_0")
    setup, plan = setup_of(chosen, LAPTOP), dense_plan(chosen, LAPTOP)
    assert setup.rung == "resident"
    # the embedding is held and one row of it used
    used = setup.layout.n_bytes - setup.layout.embedding.n_bytes
    bound_s = used / LAPTOP.memory.datasheet.bandwidth_bytes_per_s
    # generic software reaches 75 % of it, and calls, norms and attention come on top
    assert bound_s / 0.75 < token_s(plan, LAPTOP) < 1.1 * bound_s / 0.75
    moved = sum(op.bytes_read for op in plan.phase("decode").steps[0].ops if op.operator == "gemv")
    assert moved == pytest.approx(used, rel=1e-3)


def test_fewer_bits_are_faster_and_smaller() -> None:
    found = []
    for weights in ("f16", "q8_0", "q6_K", "q5_K_M", "q4_K_M", "q3_K_M", "q2_K"):
        plan = dense_plan(parameters(weights=weights, rung="resident"), LAPTOP)
        found.append((token_s(plan, LAPTOP), sum(plan.memory_bytes.values())))
    assert found == sorted(found, reverse=True)


def test_more_memory_is_never_slower() -> None:
    chosen = parameters(model="llama_2_13b", weights="q8_0")
    times = [token_s(dense_plan(chosen, laptop(gib)), laptop(gib)) for gib in (4, 6, 8, 12, 14, 15, 18, 24, 32)]
    assert times == sorted(times, reverse=True)
    assert times[-1] == times[-2] < times[0] / 5


@pytest.mark.parametrize("gib", [2.5, 4, 6, 8, 12, 16])
@pytest.mark.parametrize("weights", ["f16", "q4_K_M"])
def test_the_system_keeps_its_part(gib: float, weights: str) -> None:
    chosen, machine = parameters(model="llama_2_7b", weights=weights, context=2048, rung="auto"), laptop(gib)
    plan = dense_plan(chosen, machine)
    needed = sum(plan.memory_bytes.values())
    try:
        checked(plan, chosen, machine)
    except DoesNotFit:
        assert needed > gib * GIB - reserve_of(gib * GIB)
        return
    assert needed <= gib * GIB - reserve_of(gib * GIB)
    assert checked(plan, parameters(weights=weights, context=2048, reserve="0 B"), machine) is plan


def test_the_reserve_of_eight_gibibytes() -> None:
    # a quarter of 4 GiB and a fifth of the next 4
    assert reserve_of(8 * GIB) == pytest.approx(1.8 * GIB)
    assert reserve_of(16 * GIB) == pytest.approx(2.6 * GIB)
    assert Room.of(laptop(8), 1 * GIB).host_bytes == 7 * GIB


def test_keys_and_values_grow_with_the_context() -> None:
    short, long = (dense_plan(parameters(context=n), LAPTOP).memory_bytes["keys and values"] for n in (1024, 4096))
    # two tensors, 32 layers, 4096 numbers of two bytes each
    assert (short, long) == (1024 * 2 * 32 * 4096 * 2, 4 * short)


def test_layers_beyond_an_accelerator_are_computed_by_the_host() -> None:
    machine = library.load_machine("desktop_rtx4090")
    chosen = parameters(model="llama_2_70b")
    setup = setup_of(chosen, machine)
    assert 0 < setup.n_on_device < 80
    on_device = sum(layer.n_bytes for layer in setup.layout.layers[: setup.n_on_device])
    most = machine.accelerator.memory.datasheet.capacity_bytes if machine.accelerator is not None else 0
    # one gibibyte is left free
    assert on_device + setup.layout.head.n_bytes < most - GIB < on_device + 2 * setup.layout.layers[0].n_bytes
    ops = dense_plan(chosen, machine).phase("decode").steps[0].ops
    assert sum(op.operator == "transfer" for op in ops) == 1
    small = setup_of(parameters(), machine)
    assert small.n_on_device == 32
    assert small.head_on == "accelerator"
    assert token_s(dense_plan(parameters(), machine), machine) < token_s(dense_plan(parameters(), LAPTOP), LAPTOP)


def test_of_experts_a_token_reads_those_that_it_is_sent_to() -> None:
    chosen = parameters(model="mixtral_8x7b", rung="hybrid", weights="q4_0", resident=0.3)
    plan, setup = dense_plan(chosen, LAPTOP), setup_of(chosen, LAPTOP)
    read = sum(op.bytes_read for op in plan.phase("decode").steps[0].ops if op.resource == "storage")
    assert read == pytest.approx(setup.streamed_bytes / 4, rel=0.01)
    moved = sum(op.bytes_read * op.repeat for op in plan.phase("decode").steps[0].ops if op.operator == "gemv")
    assert moved == pytest.approx(0.5625 * (chosen.shape.n_active_params - 32000 * 4096), rel=0.03)


def test_every_mixture_has_its_plan() -> None:
    for weights in WEIGHT_TYPES:
        assert (
            dense_plan(parameters(weights=weights, rung="resident", layers=2), LAPTOP).phase("decode").n_steps == 32
        )
