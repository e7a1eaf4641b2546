"""What Megatron-LM with Transformer Engine holds at its peak, against counts written down shape by shape."""

from __future__ import annotations

from typing import Any

import pytest

from sandtable.hardware import library
from sandtable_workloads.training import training_memory
from sandtable_workloads.training.slm_training import configuration
from sandtable_workloads.training.training_parameters import SlmTraining

MACHINES = {
    stack: library.load_machine("server_8x_a100_pcie", {"stack": stack})
    for stack in ("megatron_core", "megatron_te")
}
TOKENS, B = 4096, 2  # of a micro-batch; bytes of a narrow element
PLACEHOLDERS = "weight-gradient placeholders"
# rows and columns of DeepSeek-V2's products: query, key/value, output; FFN of the first layer; shared experts
LATENT = [(1536, 5120), (24576, 1536), (576, 5120), (32768, 512), (5120, 16384)]
DENSE, SHARED = [(24576, 5120), (5120, 12288)], [(6144, 5120), (5120, 3072)]


def run(model: str, **changes: Any) -> SlmTraining:
    fixed = {"devices": 8, "sequence_tokens": TOKENS, "micro_batch": 1, "grad_accumulation": 8}
    types = {"precision": "mixed_bfloat16", "sharding": "zero_1"}
    return SlmTraining.model_validate({"model": model} | fixed | types | changes)


def held(p: SlmTraining, stage: int | None = None, stack: str = "megatron_core") -> dict[str, float]:
    machine = MACHINES[stack]
    if stage is None:
        return training_memory.memory_of(p, configuration(p, machine), machine)
    return training_memory.memory_of_stage(p, configuration(p, machine), machine, stage)


@pytest.mark.parametrize("layers", [4, 12])
@pytest.mark.parametrize("micro_batches", [4, 32])
@pytest.mark.parametrize("tensor", [1, 2])
def test_one_tensor_of_each_products_shape_stands_for_gradients(
    layers: int, micro_batches: int, tensor: int
) -> None:
    shapes = [(10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672)]
    sizes = {"tensor_parallel": tensor, "sequence_parallel": tensor > 1, "pipeline_parallel": 2}
    p = run(f"llama_3_70b_{layers}l", grad_accumulation=micro_batches, **sizes)
    expected = B * sum(rows * columns for rows, columns in shapes) / tensor
    assert held(p, stage=0)[PLACEHOLDERS] == pytest.approx(expected, rel=1e-4)
    assert PLACEHOLDERS not in held(p, stack="megatron_te")


def test_a_stage_has_the_shapes_of_its_own_layers() -> None:
    p = run("deepseek_v2_4l", pipeline_parallel=2, expert_parallel=4)
    for stage, shapes in ((0, LATENT + DENSE + SHARED), (1, LATENT + SHARED)):
        expected = B * sum(rows * columns for rows, columns in shapes)
        assert held(p, stage)[PLACEHOLDERS] == pytest.approx(expected, rel=1e-3)


def test_the_heads_backward_pass_is_the_peak_where_rows_are_wide_and_few() -> None:
    """The loss holds 6 bytes of a logit; the head backward 2, its placeholder, and the gradient of its input."""
    vocabulary, width = 128_256, 8192
    for tokens, at_loss in ((TOKENS, False), (4 * TOKENS, True)):
        p = run("llama_3_70b_12l", tensor_parallel=2, sequence_parallel=True, sequence_tokens=tokens)
        found = held(p)
        assert found["logits and loss"] == (6 if at_loss else 2) * tokens * vocabulary / 2
        first = held(p.model_copy(update={"pipeline_parallel": 2}), stage=0)
        of_head = found[PLACEHOLDERS] - first[PLACEHOLDERS]
        assert of_head == pytest.approx(0 if at_loss else B * vocabulary * width / 2)


def test_a_gate_is_passed_backward_with_two_gradients_and_its_own_where_the_products_input_went() -> None:
    p = run("llama_3_8b", pipeline_parallel=2)
    # of a layer's input and twice of its neurons: gate's own gradient comes as the last product's input goes
    assert held(p, stage=0)["recomputed layer"] == B * TOKENS * (4096 + 2 * 14336)


def test_values_of_latent_attention_leave_the_keys_parts() -> None:
    p = run("deepseek_v2_4l", expert_parallel=8)
    kept = {
        stack: training_memory.layer_memory(p, configuration(p, machine), machine.stack)["activations"]
        for stack, machine in MACHINES.items()
    }
    parts = 4 * TOKENS * 128 * 128 * B
    gate = 2 * TOKENS * (12288 + 3 * (6 * 1536 + 3072))  # that the other stack keeps
    assert kept["megatron_te"] - kept["megatron_core"] == pytest.approx(parts + gate)


@pytest.mark.parametrize(
    ("layers", "stages", "chunks"), [(32, 1, 1), (32, 4, 1), (32, 4, 2), (10, 4, 1), (30, 8, 1), (18, 4, 2)]
)
def test_the_fullest_stage_is_that_of_the_run_and_stages_hold_all_weights(
    layers: int, stages: int, chunks: int
) -> None:
    p = run(f"llama_3_8b_{layers}l", pipeline_parallel=stages, virtual_stages=chunks)
    of_stages = [held(p, stage) for stage in range(stages)]
    assert max(sum(kinds.values()) for kinds in of_stages) == pytest.approx(sum(held(p).values()))
    assert sum(kinds["weights"] for kinds in of_stages) == pytest.approx(B * p.shape.n_params, rel=1e-4)
