"""Memory of training against the closed forms of arXiv 2205.05198, and laws that hold whatever the model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandtable import library
from sandtable.errors import DoesNotFit
from sandtable_workloads.training import memory
from sandtable_workloads.training.parameters import SlmTraining
from sandtable_workloads.training.workload import SlmTrainingWorkload

WORKLOAD = SlmTrainingWorkload()
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


def total(p: SlmTraining) -> float:
    return sum(WORKLOAD.memory_by_kind([p], DGX)[0].values())


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
    assert WORKLOAD.layer_memory(p, DGX)["activations"] == pytest.approx(expected, rel=1e-3)


def test_states_are_18_bytes_a_parameter_in_mixed_precision() -> None:
    layers = 12 * 48 * 6144**2 / 8
    assert WORKLOAD.layer_memory(run(), DGX)["states"] == pytest.approx(18 * layers, rel=2e-3)


@pytest.mark.parametrize(("stages", "chunks"), [(4, 1), (4, 2), (8, 3)])
def test_the_first_stage_keeps_a_whole_model_of_activations(stages: int, chunks: int) -> None:
    # 1F1B keeps p micro-batches of L / p layers; interleaving (p - 1) / (p v) more (section 4.2.3)
    p = run(pipeline_parallel=stages, virtual_stages=chunks, devices=8 * stages, grad_accumulation=4 * stages)
    one = WORKLOAD.layer_memory(run(), DGX)["activations"]
    more = 1.0 if chunks == 1 else 1 + (stages - 1) / (stages * chunks)
    assert WORKLOAD.layer_memory(p, DGX)["activations"] == pytest.approx(one * more, rel=1e-6)


def test_pure_bfloat16_is_8_bytes_a_parameter() -> None:
    p = SlmTraining(model="slm_1b", precision="bfloat16", micro_batch=4, devices=1)
    held = WORKLOAD.memory_by_kind([p], DGX)[0]
    assert held["weights"] + held["optimizer"] == pytest.approx(6 * 970_458_240, rel=1e-3)
    spread = WORKLOAD.memory_by_kind([p.model_copy(update={"devices": 8})], DGX)[0]
    assert spread["gradients"] >= 2 * 970_458_240 * 0.999


@pytest.mark.parametrize("precision", ["bfloat16", "mixed_bfloat16", "float32"])
def test_sharding_never_needs_more_states(precision: str) -> None:
    levels = ["ddp", "zero_1", "fsdp_grad_op", "fsdp_full"]
    states = []
    for sharding in levels:
        p = SlmTraining.model_validate(
            {"model": "slm_2b", "precision": precision, "sharding": sharding, "devices": 8, "micro_batch": 4}
        )
        held = WORKLOAD.memory_by_kind([p], DGX)[0]
        states.append(held.get("weights", 0.0) + held.get("master weights", 0.0) + held["optimizer"])
    assert states == sorted(states, reverse=True)
    assert states[-1] < states[0] / 4


@settings(max_examples=25, deadline=None)
@given(
    batch=st.sampled_from([1, 2, 4, 8]),
    tokens=st.sampled_from([256, 512, 2048]),
    attention=st.sampled_from(["vanilla", "flash"]),
    checkpointing=st.sampled_from(["none", "selective", "full"]),
)
def test_more_work_needs_no_less_and_checkpointing_no_more(
    batch: int, tokens: int, attention: str, checkpointing: str
) -> None:
    p = run(micro_batch=batch, sequence_tokens=tokens, attention=attention, checkpointing=checkpointing)
    assert total(p.model_copy(update={"micro_batch": 2 * batch})) >= total(p)
    assert total(p.model_copy(update={"sequence_tokens": 2 * tokens})) >= total(p)
    assert total(p.model_copy(update={"checkpointing": "full"})) <= total(p) * 1.0001


def test_many_runs_at_once_are_counted_as_one_by_one() -> None:
    runs = [run(micro_batch=b, attention=a) for b in (1, 2, 4) for a in ("vanilla", "flash")]
    together = WORKLOAD.memory_by_kind(runs, DGX)
    for p, held in zip(runs, together, strict=True):
        assert sum(held.values()) == pytest.approx(total(p))


def test_a_run_that_does_not_fit_says_what_breaks_it_and_what_would_fit() -> None:
    p = SlmTraining(model="slm_2b", attention="vanilla", micro_batch=32, devices=8)
    assert not WORKLOAD.verdict(p, DGX).fits
    with pytest.raises(
        DoesNotFit, match=r"slm_2b needs .* and dgx_a100_80gb has .* pass the limit .* this would fit"
    ):
        WORKLOAD.plan(p, DGX, 1)


def test_the_advice_fits() -> None:
    p = SlmTraining(model="slm_2b", attention="vanilla", micro_batch=32, devices=8)

    def measure(q: SlmTraining) -> dict[str, float]:
        return WORKLOAD.memory_by_kind([q], DGX)[0]

    advice = memory.what_fits(p, DGX, measure)
    assert advice
    assert any("micro_batch" in sentence for sentence in advice)


def test_the_verdict_names_the_kind_that_passes_the_limit() -> None:
    judged = memory.verdict({"weights": 4.0, "optimizer": 4.0, "activations": 8.0}, has_bytes=10.0)
    assert (judged.fits, judged.breaks, judged.largest) == (False, "activations", "activations")
    assert memory.verdict({"weights": 4.0}, has_bytes=10.0).breaks is None
