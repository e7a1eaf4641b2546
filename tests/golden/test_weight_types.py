"""Sizes of quantised models against those of published files, and the types that their matrices have.

Sizes in GB are those that repositories on the Hugging Face Hub print: TheBloke/Llama-2-7B-GGUF and -13B-GGUF,
bartowski/Meta-Llama-3-8B-Instruct-GGUF, Qwen/Qwen2.5-7B-Instruct-GGUF (4.68), bartowski/gemma-2-9b-it-GGUF,
bartowski/Llama-3.2-3B-Instruct-GGUF, TheBloke/Llama-2-70B-GGUF.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sandtable.published import scoring
from sandtable_workloads.flash.dense.dense_layout import layout_of
from sandtable_workloads.flash.dense.weight_types import WEIGHT_TYPES, matrix_type, weight_type
from sandtable_workloads.flash.published.inference_llamacpp import InferenceLlamacpp, device_of
from sandtable_workloads.transformer.presets import shape_for

FILES = [
    ("llama_2_7b", "q4_0", 3.83),
    ("llama_2_7b", "q8_0", 7.16),
    ("llama_2_7b", "q3_K_M", 3.30),
    ("llama_2_7b", "q4_K_M", 4.08),
    ("llama_2_7b", "q5_K_M", 4.78),
    ("llama_2_7b", "q6_K", 5.53),
    ("llama_2_7b", "f16", 13.48),
    ("llama_2_13b", "q4_K_M", 7.87),
    ("llama_2_70b", "q4_K_M", 41.42),
    ("llama_3_8b", "q4_K_M", 4.92),
    ("llama_3_8b", "q8_0", 8.54),
    ("qwen_2_5_7b", "q4_K_M", 4.68),
    ("gemma_2_9b", "q4_K_M", 5.76),
    ("llama_3_2_3b", "q4_K_M", 2.02),
]


@pytest.mark.parametrize(("model", "weights", "gb"), FILES)
def test_a_file_is_as_large_as_published(model: str, weights: str, gb: float) -> None:
    layout = layout_of(shape_for(model), str(weight_type(weights)))
    # the vocabulary and other text of a file take a few megabytes besides
    assert (layout.n_bytes + layout.small_bytes) / 1e9 == pytest.approx(gb, abs=0.0101)


def test_matrices_lie_side_by_side_and_hold_every_weight() -> None:
    shape = shape_for("llama_3_2_1b")  # tied: the embedding is the output projection
    layout = layout_of(shape, "float16")
    matrices = list(layout.matrices())
    assert [m.offset for m in matrices[1:]] == [m.end for m in matrices[:-1]]
    assert all(m.offset % 4096 == 0 for m in matrices)
    assert sum(m.rows * m.columns for m in matrices) == shape.n_params - shape.small_params
    assert layout.head is layout.embedding


@pytest.mark.parametrize("model", ["mixtral_8x7b", "deepseek_v3", "gpt_oss_20b"])
def test_experts_and_latents_are_all_there(model: str) -> None:
    shape = shape_for(model)
    held = sum(m.count * m.rows * m.columns for m in layout_of(shape, "float16").matrices())
    assert held == pytest.approx(shape.n_params, rel=2e-3)


def test_a_four_bit_model_has_six_bits_where_it_matters() -> None:
    shape = shape_for("llama_2_7b")
    down = [matrix_type("q4_K_M", "down", layer, 11008, shape) for layer in range(32)]
    assert [layer for layer, dtype in enumerate(down) if dtype == "q6_K"] == [
        0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31,
    ]  # fmt: skip
    assert matrix_type("q4_0", "head", -1, 4096, shape) == "q6_K"
    assert matrix_type("q4_0", "embedding", -1, 4096, shape) == "q4_0"
    assert matrix_type("q8_0", "head", -1, 4096, shape) == "q8_0"
    assert matrix_type("q4_K_M", "v", 11, 8192, shape_for("llama_2_70b")) == "q5_K"


def test_rows_of_no_whole_blocks_fall_back() -> None:
    shape = shape_for("llama_2_7b")
    assert matrix_type("q4_K_M", "up", 0, 4096 + 32, shape) == "q5_0"
    assert matrix_type("q4_K_M", "up", 0, 4096 + 8, shape) == "float16"
    assert matrix_type("q8_0", "up", 0, 4096 + 8, shape) == "float16"


NAMES = {
    "Q4_K_M": "q4_K_M",
    "F16": "float16",
    "bf16": "bfloat16",
    "4bit": "q4_K_M",
    "4-bit": "q4_K_M",
    "q8_0": "q8_0",
}


@pytest.mark.parametrize(("written", "meant"), NAMES.items())
def test_types_by_the_names_that_people_use(written: str, meant: str) -> None:
    assert weight_type(written) == meant


def test_a_type_that_does_not_exist() -> None:
    with pytest.raises(
        ValueError, match=r"no weights are called 'q4_K_X' \(did you mean 'q4_K_S'.*write one of f32"
    ):
        weight_type("q4_K_X")
    assert all(weight_type(name) == name for name in WEIGHT_TYPES)


def test_published_speeds_of_llama_cpp(reference_folder: Path) -> None:
    """No constant comes from these rows: bytes of the weights over a share of the bandwidth that any software has."""
    if not (reference_folder / "inference_llamacpp.csv").is_file():
        pytest.skip("inference_llamacpp.csv is not among the published measurements here")
    (score,) = scoring.score(InferenceLlamacpp(), reference_folder)
    errors = sorted(abs(one.error_frac) for one in score.points)
    assert len(errors) > 100
    assert errors[len(errors) // 2] < 0.15
    chosen = [one for one in score.points if one.label == "3090 24GB llama_3_8b q4_K_M"]
    four_bits = [one.predicted / one.measured for one in chosen]
    # long contexts take more than reading keys and values once
    assert 0.9 < min(four_bits) < 1.1
    assert max(four_bits) < 1.3


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("3090 24GB", "nvidia_rtx_3090"),
        ("A100 PCIe 80GB", "nvidia_a100_pcie"),
        ("Apple M1 Pro 16-core GPU", "apple_m1_pro_gpu_16"),
        ("Apple M3 Max 40-core GPU", "apple_m3_max_gpu_40"),
        ("a made-up GPU", None),
    ],
)
def test_gpus_by_the_names_of_these_tables(text: str, name: str | None) -> None:
    assert device_of(text) == name
