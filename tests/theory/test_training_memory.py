"""Memory of training against the closed forms of arXiv 2205.05198, and laws that hold whatever the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandtable.errors import ConfigError, DoesNotFit
from sandtable.hardware import Machine, library
from sandtable_workloads.training import training_memory
from sandtable_workloads.training.executed.run_job import check_executable
from sandtable_workloads.training.schedule import tasks_of
from sandtable_workloads.training.slm_training import (
    SlmTrainingWorkload,
    configuration,
    memories,
    memory_of,
)
from sandtable_workloads.training.states import optimizers
from sandtable_workloads.training.states.stages import held_by, in_flight, layers_at, places
from sandtable_workloads.training.step_numbers import SHARDING
from sandtable_workloads.training.training_parameters import SlmTraining

WORKLOAD = SlmTrainingWorkload()


def layer_memory(p: SlmTraining, machine: Machine) -> dict[str, float]:
    return training_memory.layer_memory(p, configuration(p, machine), machine.stack)


DGX = library.load_machine("dgx_a100_80gb", {"stack": "megatron_lm"})
GPT: dict[str, Any] = {
    "model": "megatron_22b",
    "sequence_tokens": 2048,
    "micro_batch": 4,
    "devices": 8,
    "tensor_parallel": 8,
    "precision": "mixed_float16",
    "attention": "vanilla",
}


def run(**changes: Any) -> SlmTraining:
    return SlmTraining.model_validate(GPT | changes)


def fits(p: SlmTraining) -> bool:
    return SlmTrainingWorkload().verdicts([p], DGX)[0].fits


def total(p: SlmTraining) -> float:
    return sum(memories([p], DGX)[0].values())


@pytest.mark.parametrize(
    ("changes", "per_token_and_width"),
    [
        ({}, 10 + 24 / 8 + 5 * 64 * 2048 / 6144 / 8),  # Table 2, tensor parallel
        ({"sequence_parallel": True}, (34 + 5 * 64 * 2048 / 6144) / 8),
        ({"checkpointing": "selective"}, 10 + 24 / 8),
        ({"sequence_parallel": True, "checkpointing": "selective"}, 34 / 8),
        ({"checkpointing": "full"}, 2),
    ],
)
def test_a_layer_keeps_what_table_2_counts(changes: dict[str, Any], per_token_and_width: float) -> None:
    p = run(**changes)
    expected = p.sequence_tokens * p.micro_batch * 6144 * 48 * per_token_and_width
    assert layer_memory(p, DGX)["activations"] == pytest.approx(expected, rel=1e-3)


def test_states_are_18_bytes_a_parameter_in_mixed_precision() -> None:
    layers = 12 * 48 * 6144**2 / 8
    assert layer_memory(run(), DGX)["states"] == pytest.approx(18 * layers, rel=2e-3)


@pytest.mark.parametrize(("stages", "chunks"), [(4, 1), (4, 2), (8, 3)])
def test_the_first_stage_keeps_a_whole_model_of_activations(stages: int, chunks: int) -> None:
    # 1F1B keeps p micro-batches of L / p layers; interleaving (p - 1) / (p v) more (section 4.2.3)
    p = run(pipeline_parallel=stages, virtual_stages=chunks, devices=8 * stages, grad_accumulation=4 * stages)
    one = layer_memory(run(), DGX)["activations"]
    more = 1.0 if chunks == 1 else 1 + (stages - 1) / (stages * chunks)
    assert layer_memory(p, DGX)["activations"] == pytest.approx(one * more, rel=1e-6)


def test_moments_may_be_wider_than_weights() -> None:
    narrow, wide = (
        SlmTraining(model="slm_1b", precision="bfloat16", devices=1, optimizer_dtype=dtype)
        for dtype in (None, "float32")
    )
    held = memories([narrow, wide], DGX)
    assert held[1]["optimizer"] == 2 * held[0]["optimizer"] == pytest.approx(8 * 970_458_240, rel=1e-3)
    assert held[1]["weights"] == held[0]["weights"]
    # gradient, weight and two moments, the last three read and written
    assert tuple(optimizers.moved_bytes(p, p.shape) for p in (narrow, wide)) == (
        2 + 2 * 2 + 4 * 2,
        2 + 2 * 2 + 4 * 4,
    )
    with pytest.raises(ConfigError, match="optimizer_dtype: float32 beside bfloat16 is simulated only"):
        check_executable(wide)


def test_pure_bfloat16_is_8_bytes_a_parameter() -> None:
    p = SlmTraining(model="slm_1b", precision="bfloat16", micro_batch=4, devices=1)
    held = memories([p], DGX)[0]
    assert held["weights"] + held["optimizer"] == pytest.approx(6 * 970_458_240, rel=1e-3)
    spread = memories([p.model_copy(update={"devices": 8})], DGX)[0]
    assert spread["gradients"] >= 2 * 970_458_240 * 0.999


@pytest.mark.parametrize("precision", ["bfloat16", "mixed_bfloat16", "float32"])
def test_sharding_never_needs_more_states(precision: str) -> None:
    levels = ["ddp", "zero_1", "fsdp_grad_op", "fsdp_full"]
    states = []
    for sharding in levels:
        p = SlmTraining.model_validate(
            {"model": "slm_2b", "precision": precision, "sharding": sharding, "devices": 8, "micro_batch": 4}
        )
        held = memories([p], DGX)[0]
        states.append(held.get("weights", 0.0) + held.get("master weights", 0.0) + held["optimizer"])
    assert states == sorted(states, reverse=True)
    assert states[-1] < states[0] / 4


def summed(held: dict[str, float], *kinds: str) -> float:
    return sum(held.get(kind, 0.0) for kind in kinds)


@pytest.mark.parametrize("precision", ["bfloat16", "mixed_bfloat16", "float32"])
@pytest.mark.parametrize("stack", ["megatron_lm", "huggingface_pytorch_2_3"])
def test_sharding_never_needs_more_in_all(precision: str, stack: str) -> None:
    machine = library.load_machine("dgx_a100_80gb", {"stack": stack})
    base = SlmTraining.model_validate({"model": "slm_2b", "precision": precision, "devices": 8, "micro_batch": 4})
    runs = [base.model_copy(update={"sharding": sharding}) for sharding in SHARDING]
    totals = [sum(held.values()) for held in memories(runs, machine)]
    assert totals == sorted(totals, reverse=True)


def test_gradients_beside_their_buckets_are_there_twice() -> None:
    # little work, so that the peak is the optimiser's step: 8 bytes a parameter, 2 in buckets, 2 at work
    machine = library.load_machine("dgx_a100_80gb", {"stack": "huggingface_pytorch_2_3"})
    p = SlmTraining(model="slm_2b", precision="bfloat16", micro_batch=1, sequence_tokens=64, devices=8)
    held = memories([p], machine)[0]
    assert summed(held, *(set(held) - {"reserved"})) == pytest.approx(12 * 1_969_027_008, rel=1e-3)


def test_autocast_keeps_the_residual_stream_and_the_embedding_wide() -> None:
    machine = library.load_machine("dgx_h100", {"stack": "pytorch_cuda"})
    base: dict[str, Any] = {"model": "slm_100m", "micro_batch": 4, "checkpointing": "full"}
    narrow, mixed = (
        SlmTraining.model_validate(base | {"precision": precision}) for precision in ("bfloat16", "mixed_bfloat16")
    )
    of_layers = [layer_memory(p, machine)["activations"] for p in (narrow, mixed)]
    assert of_layers == [4096 * 832 * 9 * n_bytes for n_bytes in (2, 4)]
    held = memories([mixed], machine)[0]
    # the loss: log-probabilities and two gradients of theirs, behind the last norm's input and output
    assert held["activations"] == of_layers[1] + 4096 * 832 * (4 + 2)
    assert held["logits and loss"] == 4096 * 32_000 * 12
    assert held["weights"] == pytest.approx(2 * (mixed.shape.n_params - 32_000 * 832), rel=1e-4)
    # gathered weights are cast whole, so that layers work in the narrow type throughout
    sharded = mixed.model_copy(update={"devices": 8, "sharding": "fsdp_grad_op"})
    assert layer_memory(sharded, machine)["activations"] == of_layers[0]


LEVELS = ("none", "selective", "full")


@settings(max_examples=25, deadline=None)
@given(
    batch=st.sampled_from([1, 2, 4, 8]),
    tokens=st.sampled_from([256, 512, 2048]),
    attention=st.sampled_from(["vanilla", "flash"]),
    checkpointing=st.sampled_from(["none", "selective", "alternate", "full"]),
    stages=st.sampled_from([1, 2, 3, 8]),
)
def test_more_work_needs_no_less_and_checkpointing_no_more(
    batch: int, tokens: int, attention: str, checkpointing: str, stages: int
) -> None:
    p = run(
        micro_batch=batch,
        sequence_tokens=tokens,
        attention=attention,
        checkpointing=checkpointing,
        pipeline_parallel=stages,
        devices=8 * stages,
        grad_accumulation=stages,
    )
    assert total(p.model_copy(update={"micro_batch": 2 * batch})) >= total(p)
    assert total(p.model_copy(update={"sequence_tokens": 2 * tokens})) >= total(p)
    # activations kept; one layer that is computed again may pass what tiny models save
    kept = [layer_memory(p.model_copy(update={"checkpointing": level}), DGX) for level in LEVELS]
    sizes = [held["activations"] for held in kept]
    assert sizes == sorted(sizes, reverse=True)
    assert total(p.model_copy(update={"checkpointing": "full"})) <= total(p) * 1.0001


def test_every_second_layer_keeps_half_of_what_none_and_full_keep() -> None:
    kept = {
        level: layer_memory(run(checkpointing=level), DGX)["activations"] for level in ("none", "alternate", "full")
    }
    assert kept["alternate"] == pytest.approx((kept["none"] + kept["full"]) / 2)


@pytest.mark.parametrize("batch", [1, 4])
def test_more_layers_need_more(batch: int) -> None:
    c = configuration(run(micro_batch=batch), DGX)
    totals = [
        sum(
            float(size)
            for size in training_memory.memory_of_configuration(
                run(), replace(c, n_layers=layers), DGX.stack, on_accelerator=True
            ).values()
        )
        for layers in (1, 2, 24, 48)
    ]
    assert totals == sorted(totals)
    assert totals[0] < totals[-1]


def test_inputs_of_layers_are_split_where_norms_are() -> None:
    # what a layer computed again keeps is its input, a t-th of it on each device with sequence parallelism
    whole = layer_memory(run(checkpointing="full"), DGX)["activations"]
    split = layer_memory(run(checkpointing="full", sequence_parallel=True), DGX)["activations"]
    assert split == pytest.approx(whole / 8)


# --- stages of a pipeline ----------------------------------------------------------------------------------------


def test_the_last_stage_may_hold_most() -> None:
    # only inputs of layers are kept: the logits of one micro-batch pass what the first stage has of two
    p = SlmTraining(
        model="slm_100m",
        devices=2,
        pipeline_parallel=2,
        grad_accumulation=2,
        micro_batch=16,
        checkpointing="full",
    )
    held = memories([p], DGX)[0]
    assert held["logits and loss"] == pytest.approx(16 * 1024 * 32_000 * 6)


@pytest.mark.parametrize(("stages", "chunks", "micro"), [(4, 1, 4), (4, 1, 2), (4, 2, 8), (8, 3, 8)])
def test_micro_batches_in_flight_are_those_of_the_schedule(stages: int, chunks: int, micro: int) -> None:
    p = run(pipeline_parallel=stages, virtual_stages=chunks, devices=8 * stages, grad_accumulation=micro)
    c = configuration(p, DGX)
    for stage in range(stages):
        kept = most = 0
        for task in tasks_of(stage, stages, micro, chunks):
            kept += 1 if task.forward else -1
            most = max(most, kept)
        assert in_flight(c, float(stage)) == pytest.approx(most / chunks)


@pytest.mark.parametrize(("stages", "chunks"), [(2, 1), (3, 1), (5, 1), (7, 1), (4, 2)])
def test_a_stage_holds_the_layers_that_the_plan_gives_it(stages: int, chunks: int) -> None:
    p = run(pipeline_parallel=stages, virtual_stages=chunks, devices=8 * stages, grad_accumulation=stages)
    first, longest, last = (float(np.asarray(place.layers)) for place in places(configuration(p, DGX)))
    sizes = [
        sum(
            end - begin
            for begin, end in (layers_at(k, 48, stages * chunks) for k in range(s, stages * chunks, stages))
        )
        for s in range(stages)
    ]
    assert first <= sizes[0] <= longest
    assert last <= sizes[-1] <= longest
    assert max(sizes) <= longest


def test_stacked_runs_with_and_without_stages_are_counted_as_one_by_one() -> None:
    runs = [run(pipeline_parallel=s, devices=8 * s, grad_accumulation=s) for s in (1, 2, 5)]
    for p, held in zip(runs, memories(runs, DGX), strict=True):
        assert sum(held.values()) == pytest.approx(total(p))


def test_experts_are_shared_by_fewer_devices_than_the_rest() -> None:
    # 64 replicas, 8 of which hold each expert: optimiser states of an expert are cut in 8, those of the rest in 64
    p = SlmTraining(
        model="mixtral_8x7b", devices=64, expert_parallel=8, sharding="zero_1", precision="mixed_bfloat16"
    )
    held = memories([p], DGX)[0]
    experts = 32 * 8 * 3 * 4096 * 14336
    rest = 46_702_792_704 - experts
    assert held["master weights"] == pytest.approx(4 * (experts / 64 + rest / 64), rel=1e-3)
    assert held["weights"] == pytest.approx(2 * (experts / 8 + rest), rel=1e-3)


# --- many at once, and verdicts ----------------------------------------------------------------------------------


def test_many_runs_at_once_are_counted_as_one_by_one() -> None:
    runs = [run(micro_batch=b, attention=a) for b in (1, 2, 4) for a in ("vanilla", "flash")]
    together = memories(runs, DGX)
    for p, held in zip(runs, together, strict=True):
        assert sum(held.values()) == pytest.approx(total(p))


def test_a_run_that_does_not_fit_says_what_breaks_it_and_what_would_fit() -> None:
    p = SlmTraining(model="slm_2b", attention="vanilla", micro_batch=32, devices=8)
    assert not fits(p)
    with pytest.raises(
        DoesNotFit,
        match=r"slm_2b .1\.97B parameters. needs .* and dgx_a100_80gb has .* pass the limit .* this would fit",
    ):
        WORKLOAD.plan(p, DGX, 1)


@pytest.mark.parametrize("checkpointing", ["none", "alternate"])
def test_the_advice_fits(checkpointing: str) -> None:
    p = SlmTraining.model_validate(
        {"model": "slm_2b", "attention": "vanilla", "micro_batch": 64, "devices": 8, "checkpointing": checkpointing}
    )
    assert not fits(p)
    advice = training_memory.what_fits(p, DGX, lambda q: memory_of(q, DGX))
    assert any("micro_batch" in sentence for sentence in advice)
    for sentence in advice:
        changes = dict(part.split() for part in sentence.split(" with "))
        assert fits(SlmTraining.model_validate(p.model_dump() | changes))


def test_the_verdict_names_the_kind_that_passes_the_limit() -> None:
    judged = training_memory.verdict({"weights": 4.0, "optimizer": 4.0, "activations": 8.0}, has_bytes=10.0)
    assert (judged.fits, judged.breaks, judged.largest) == (False, "activations", "activations")
    assert training_memory.verdict({"weights": 4.0}, has_bytes=10.0).breaks is None


def test_a_gate_of_one_kernel_keeps_what_its_products_put_out() -> None:
    """Gate, value and product's input for the backward pass; a gate's own output where it is a kernel of its own."""
    p = SlmTraining(model="llama_3_8b", micro_batch=1, sequence_tokens=4096, precision="mixed_bfloat16")
    machines = {
        stack: library.load_machine("dgx_h100", {"stack": stack}) for stack in ("megatron_te", "megatron_core")
    }
    kept = {
        stack: training_memory.layer_memory(p, configuration(p, machine), machine.stack)["activations"]
        for stack, machine in machines.items()
    }
    shape = p.shape
    assert kept["megatron_te"] - kept["megatron_core"] == pytest.approx(2 * 4096 * shape.n_neurons * shape.n_layers)


def test_the_stage_behind_the_dense_layers_holds_more_experts() -> None:
    """A model of one dense layer and three with experts, in two stages: one layer with experts, and two."""
    p = SlmTraining(
        model="deepseek_v2_4l",
        devices=8,
        pipeline_parallel=2,
        expert_parallel=4,
        grad_accumulation=8,
        sharding="zero_1",
    )
    first, _, last = places(configuration(p, DGX))
    c = configuration(p, DGX)
    assert [float(np.asarray(place.with_experts(c))) for place in (first, last)] == [1, 2]
    held = [held_by(c, place, 0.0) for place in (first, last)]
    assert float(np.asarray(held[1].experts)) == 2 * float(np.asarray(held[0].experts))
