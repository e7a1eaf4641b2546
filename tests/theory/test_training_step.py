"""A training step in closed form against the engine that plays it op by op, and laws that both must keep."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandtable.engine.recorder import StepResult
from sandtable.engine.simulation import run
from sandtable.hardware import Machine, library
from sandtable.model.cost_model import CostModel
from sandtable_workloads.training import slm_training
from sandtable_workloads.training.training_parameters import SlmTraining
from sandtable_workloads.training.training_plan import layers_at, plan_of

SMALL: dict[str, Any] = {
    "model": "slm_1b",
    "sequence_tokens": 1024,
    "micro_batch": 4,
    "devices": 8,
    "warmup_steps": 0,
}
LARGE: dict[str, Any] = {
    "model": "gpt_3_175b",
    "sequence_tokens": 2048,
    "micro_batch": 1,
    "precision": "mixed_float16",
    "attention": "vanilla",
    "tensor_parallel": 8,
}


@lru_cache(maxsize=4)
def machine_named(name: str = "aws_p4d_24xlarge", stack: str = "torchtitan") -> Machine:
    return library.load_machine(name, {"stack": stack})


def played(parameters: SlmTraining, machine: Machine) -> StepResult:
    shape = parameters.shape
    plan = plan_of(parameters, slm_training.configuration(parameters, machine), shape, machine, {})
    return run(plan, CostModel(machine)).steps[-1]


def closed(parameters: SlmTraining, machine: Machine) -> dict[str, float]:
    return {name: float(column[0]) for name, column in slm_training.estimate([parameters], machine).items()}


@pytest.mark.parametrize("sharding", ["ddp", "zero_1", "fsdp_grad_op", "fsdp_full"])
@pytest.mark.parametrize(
    ("micro_batch", "devices", "accumulation"), [(4, 8, 1), (1, 64, 1), (2, 16, 3), (16, 8, 2)]
)
def test_data_parallel(sharding: str, micro_batch: int, devices: int, accumulation: int) -> None:
    changes = {
        "sharding": sharding,
        "micro_batch": micro_batch,
        "devices": devices,
        "grad_accumulation": accumulation,
    }
    parameters = SlmTraining(**SMALL | changes)
    engine, formula = played(parameters, machine_named()), closed(parameters, machine_named())
    assert formula["step_s"] == pytest.approx(engine.total_s, rel=0.02)
    for section in ("forward", "backward", "optimizer"):
        assert formula[f"{section}_s"] == pytest.approx(engine.counters[f"{section}_s"], rel=0.05, abs=1e-4)
    exposed = engine.by_account["communication"]
    assert formula["communication_s"] == pytest.approx(exposed, rel=0.05, abs=0.01 * engine.total_s)


@pytest.mark.parametrize("sharding", ["ddp", "zero_1", "fsdp_grad_op", "fsdp_full"])
def test_processes_of_a_cpu(sharding: str) -> None:
    machine = library.load_machine("laptop_pcie4", {"stack": "pytorch_cpu", "process_link": "pcie4_x16"})
    machine = machine.model_copy(update={"accelerator": None})
    parameters = SlmTraining(model="tiny_4x128", sequence_tokens=128, devices=2, sharding=sharding, warmup_steps=0)
    engine, formula = played(parameters, machine), closed(parameters, machine)
    assert formula["step_s"] == pytest.approx(engine.total_s, rel=0.03)


@pytest.mark.parametrize("checkpointing", ["selective", "alternate", "full"])
def test_checkpointing(checkpointing: str) -> None:
    parameters = SlmTraining(**SMALL | {"checkpointing": checkpointing, "attention": "vanilla", "devices": 1})
    formula = closed(parameters, machine_named())
    # of 19 layers ten are computed again where every second one is
    assert formula["step_s"] == pytest.approx(played(parameters, machine_named()).total_s, rel=0.02)
    assert (
        formula["step_s"]
        > closed(parameters.model_copy(update={"checkpointing": "none"}), machine_named())["step_s"]
    )


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_tensor_parallel(sequence_parallel: bool, behind: bool) -> None:
    changes = {
        "model": "megatron_22b",
        "devices": 8,
        "grad_accumulation": 4,
        "sequence_parallel": sequence_parallel,
        "overlap_input_gradients": behind,
    }
    parameters = SlmTraining(**LARGE | changes)
    assert closed(parameters, machine_named())["step_s"] == pytest.approx(
        played(parameters, machine_named()).total_s, rel=0.005
    )


@pytest.mark.parametrize(("per_machine", "hidden_share"), [(8, 0.5), (1, 0.0)])
def test_input_gradients_are_summed_behind_the_weights(per_machine: int, hidden_share: float) -> None:
    """Within a machine half of a layer's all-reduces vanish; between machines a product hides its own time of each."""
    machine = machine_named()
    assert machine.accelerator is not None
    one = machine.accelerator.model_copy(update={"n": per_machine})
    machine = machine.model_copy(update={"accelerator": one})
    changes = {"model": "megatron_22b", "devices": 8}
    apart, behind = (
        closed(SlmTraining(**LARGE | changes | {"overlap_input_gradients": on}), machine) for on in (False, True)
    )
    sent = apart["communication_s"]
    assert apart["step_s"] - behind["step_s"] == pytest.approx(sent - behind["communication_s"])
    if hidden_share:
        assert behind["communication_s"] == pytest.approx((1 - hidden_share) * sent, rel=0.1)
    else:
        assert 0.5 * sent < behind["communication_s"] < sent


@pytest.mark.parametrize(
    ("stages", "chunks", "accumulation", "replicas"),
    [(8, 1, 32, 1), (8, 1, 8, 2), (4, 1, 2, 1), (8, 3, 32, 1), (4, 2, 16, 2), (5, 1, 10, 1)],
)
def test_pipeline(stages: int, chunks: int, accumulation: int, replicas: int) -> None:
    changes = {
        "devices": 8 * stages * replicas,
        "pipeline_parallel": stages,
        "virtual_stages": chunks,
        "grad_accumulation": accumulation,
        "sharding": "zero_1",
    }
    parameters = SlmTraining(**LARGE | changes)
    engine, formula = played(parameters, machine_named()), closed(parameters, machine_named())
    assert formula["step_s"] == pytest.approx(engine.total_s, rel=0.025)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp_full"])
def test_every_instant_of_a_step_counts_once(sharding: str) -> None:
    engine = played(SlmTraining(**SMALL | {"sharding": sharding, "devices": 64}), machine_named())
    assert sum(engine.by_account.values()) + engine.counters.get("idle_s", 0.0) == pytest.approx(engine.total_s)
    sections = sum(engine.counters[f"{name}_s"] for name in ("forward", "backward", "optimizer"))
    assert sections == pytest.approx(engine.total_s)


def test_one_device_sends_nothing() -> None:
    formula = closed(SlmTraining(**SMALL | {"devices": 1}), machine_named())
    assert formula["communication_s"] == pytest.approx(0.0, abs=1e-9)


def test_many_at_once_equal_one_by_one() -> None:
    runs = [
        SlmTraining(**SMALL | {"micro_batch": batch, "sharding": sharding, "attention": attention})
        for batch in (1, 3, 8)
        for sharding in ("ddp", "fsdp_full")
        for attention in ("flash", "vanilla")
    ]
    together = slm_training.estimate(runs, machine_named())
    for parameters, step_s in zip(runs, together["step_s"], strict=True):
        assert step_s == pytest.approx(closed(parameters, machine_named())["step_s"], rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 16),
    layers=st.integers(1, 19),
    sharding=st.sampled_from(["ddp", "zero_1", "fsdp_grad_op", "fsdp_full"]),
    devices=st.sampled_from([1, 2, 8, 16, 64]),
)
def test_more_work_takes_longer(batch: int, layers: int, sharding: str, devices: int) -> None:
    base = SMALL | {"sharding": sharding, "devices": devices, "micro_batch": batch, "model": f"slm_1b_{layers}l"}
    first = closed(SlmTraining(**base), machine_named())["step_s"]
    assert closed(SlmTraining(**base | {"micro_batch": 2 * batch}), machine_named())["step_s"] > first
    assert closed(SlmTraining(**base | {"grad_accumulation": 2}), machine_named())["step_s"] > first
    assert closed(SlmTraining(**base | {"model": "slm_1b"}), machine_named())["step_s"] >= first


@given(n_layers=st.integers(1, 130), positions=st.integers(1, 64))
def test_chunks_of_a_pipeline_hold_every_layer_once(n_layers: int, positions: int) -> None:
    ends = [layers_at(position, n_layers, positions) for position in range(positions)]
    assert [layer for first, last in ends for layer in range(first, last)] == list(range(n_layers))
    sizes = [last - first for first, last in ends]
    assert max(sizes) - min(sizes) <= 1
