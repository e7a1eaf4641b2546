"""Dense inference for real: what the runner says equals plain NumPy on widened weights, and its counts the plan's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sandtable import units
from sandtable.errors import ConfigError
from sandtable.hardware import Machine
from sandtable.workload.seam import ExecutionContext, workload_named

pytest.importorskip("numba", reason="running for real needs numba")

from sandtable_kernels.files.dtypes import decode
from sandtable_kernels.operations.elementwise import norm
from sandtable_workloads.flash.dense.dense_choice import setup_of
from sandtable_workloads.flash.dense.dense_files import open_dense
from sandtable_workloads.flash.dense.dense_layout import Matrix
from sandtable_workloads.flash.dense.dense_runner import DenseModel, stored_matrix
from sandtable_workloads.flash.flash_parameters import FlashInference

pytestmark = pytest.mark.measured

GROUPED = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 300,
}


@pytest.fixture
def grouped(tmp_path: Path) -> str:
    """A model with a gate and two key-value heads for eight."""
    folder = tmp_path / "grouped_mini"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(GROUPED))
    return str(folder / "config.json")


def parameters(model: str, **changes: Any) -> FlashInference:
    values = {"model": model, "rung": "resident", "tokens": 3, "prompt_tokens": 4, "resident": 0.6} | changes
    return FlashInference.model_validate(values, context=units.AT_EDGE)


@pytest.mark.parametrize(
    ("weights", "rung"), [("f16", "resident"), ("q8_0", "hybrid"), ("q4_0", "resident"), ("q4_K_M", "hybrid")]
)
def test_a_run_counts_what_is_planned(
    grouped: str, machine: Machine, tmp_path: Path, weights: str, rung: str
) -> None:
    chosen, workload = parameters(grouped, weights=weights, rung=rung), workload_named("flash_inference")
    context = ExecutionContext(folder=tmp_path / "stores", n_threads=2)
    workload.prepare(chosen, machine, 1, context)
    done, plan = workload.execute(chosen, machine, 1, context), workload.plan(chosen, machine, 1)
    assert done.memory_bytes == plan.memory_bytes
    assert [step.phase for step in done.steps] == ["prefill", "decode", "decode", "decode"]
    planned = sum(op.bytes_read for op in plan.phase("decode").steps[0].ops if op.resource == "storage")
    assert [step.counters["bytes_read"] for step in done.steps[1:]] == [planned] * 3
    assert (planned > 0) == (rung == "hybrid")


@pytest.mark.parametrize(
    ("weights", "rung"), [("f32", "resident"), ("q8_0", "resident"), ("q8_0", "hybrid"), ("q4_K_M", "hybrid")]
)
def test_a_token_is_what_numpy_says(
    grouped: str, machine: Machine, tmp_path: Path, weights: str, rung: str
) -> None:
    chosen = parameters(grouped, weights=weights, rung=rung, kv="float32")
    setup = setup_of(chosen, machine)
    open_dense(setup.layout, tmp_path, lambda _: None)
    model = DenseModel(chosen, setup, tmp_path, 2)
    try:
        model.step(np.stack([model.embed(token, token) for token in range(4)]), "prefill", "prompt")
        model.step(model.embed(5, 4), "decode", "token")
        wanted = _reference(model, [0, 1, 2, 3, 5])
        assert model.next_token == int(np.argmax(wanted))
        assert len(set(np.round(wanted, 4))) > 100  # logits that differ, so that the largest says something
    finally:
        model.close()


def _reference(model: DenseModel, tokens: list[int]) -> np.ndarray[Any, Any]:
    """Return the logits after ``tokens``, in float64 from the bytes of the file."""
    shape, small = model.shape, model.small
    raw = model.blob.path.read_bytes()[model.blob.data_offset :]

    def wide(matrix: Matrix) -> Any:
        data = np.frombuffer(raw, np.uint8, matrix.one_bytes, matrix.offset)
        return decode(stored_matrix(matrix, data), matrix.dtype).astype(np.float64)

    x: Any = wide(model.layout.embedding)[tokens]
    normed: Any = norm(x, small.first)
    for layer, matrices in enumerate(model.layout.layers):
        q, k, v = (normed @ wide(matrix).T for matrix in matrices.attention[:3])
        out = np.zeros_like(q)
        for head in range(shape.n_heads):
            e, g = shape.head_dim, head // (shape.n_heads // shape.n_kv_heads)
            mine, theirs = slice(head * e, (head + 1) * e), slice(g * e, (g + 1) * e)
            scores = q[:, mine] @ k[:, theirs].T / np.sqrt(e)
            scores[np.triu_indices(len(tokens), 1)] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[:, mine] = weights / weights.sum(axis=1, keepdims=True) @ v[:, theirs]
        x = x + out @ wide(matrices.attention[3]).T
        normed = norm(x, small.after_attention[layer])
        up, gate, down = (wide(matrix) for matrix in matrices.ffn)
        before = normed @ gate.T
        x = x + (before / (1 + np.exp(-before)) * (normed @ up.T)) @ down.T
        normed = norm(x, small.after_ffn[layer])
    logits: np.ndarray[Any, Any] = normed[-1] @ wide(model.layout.head).T
    return logits


def test_what_no_kernel_reads_is_refused(machine: Machine, tmp_path: Path) -> None:
    workload, context = workload_named("flash_inference"), ExecutionContext(folder=tmp_path, n_threads=2)
    with pytest.raises(
        ConfigError, match="tiny_4x256 as q5_K_M has matrices of q5_1, q5_K, which are predicted only"
    ):
        workload.prepare(parameters("tiny_4x256", weights="q5_K_M"), machine, 1, context)
    with pytest.raises(ConfigError, match="mixtral_8x7b has experts, latent attention"):
        workload.prepare(parameters("mixtral_8x7b", weights="q4_0"), machine, 1, context)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_named(grouped: str, machine: Machine, tmp_path: Path) -> None:
    from sandtable.errors import StoreError

    layout = setup_of(parameters(grouped, weights="q4_0"), machine).layout
    path = open_dense(layout, tmp_path, lambda _: None).path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=path.name):
        open_dense(layout, tmp_path, lambda _: None)
