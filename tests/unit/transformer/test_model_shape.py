"""What follows from a shape by counting: parts, flops, keys and values; and names that others print."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable_workloads.transformer import LatentAttention, ModelShape, Moe, all_presets, preset_for, shape_named
from sandtable_workloads.transformer.presets import base_name, preset_sources


def llama(**changes: Any) -> ModelShape:
    fields: dict[str, Any] = {
        "name": "small",
        "n_layers": 3,
        "d_model": 64,
        "n_neurons": 96,
        "n_vectors": 3,
        "n_heads": 8,
        "n_kv_heads": 2,
        "head_dim": 16,
        "vocabulary": 100,
        "tied": False,
    }
    return ModelShape(**fields | changes)


def test_a_gated_grouped_model_by_hand() -> None:
    shape = llama()
    attention = 64 * (8 + 2 + 2) * 16 + 8 * 16 * 64
    assert shape.attention_params == attention
    assert shape.ffn_params == 3 * 64 * 96
    assert shape.parts == {
        "embedding": 6400,
        "attention": 3 * attention,
        "ffn": 3 * 3 * 64 * 96,
        "norms": (3 * 2 + 1) * 64,
        "head": 6400,
    }
    assert shape.matmul_params == 3 * (attention + 3 * 64 * 96) + 6400
    assert shape.kv_bytes(10, "float16") == 10 * 3 * 2 * 2 * 16 * 2


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"attention_bias": True}, 3 * 12 * 16),
        ({"output_bias": True}, 3 * 64),
        ({"ffn_bias": True}, 3 * (2 * 96 + 64)),
        ({"head_bias": True}, 100),
        ({"attention_sinks": True}, 3 * 8),
        ({"norm": "layer"}, 7 * 64),
        ({"norm": "layer_no_bias"}, 0),
        ({"norms_per_layer": 4}, 3 * 2 * 64),
        ({"embedding_norm": True}, 64),
        ({"final_norm": False}, -64),
        ({"qk_norm": "per_head"}, 3 * 2 * 16),
        ({"qk_norm": "all_heads"}, 3 * 10 * 16),
        ({"positions": "learned", "n_positions": 50}, 50 * 64),
        ({"positions": "alibi"}, 0),
        ({"tied": True}, -6400),
        ({"embedding_dim": 32}, 2 * 64 * 32 - 2 * 100 * 32),
        ({"other_params": 7}, 7),
        ({"sliding_window": 8}, 0),
    ],
)
def test_what_each_choice_adds(changes: dict[str, Any], more: int) -> None:
    assert llama(**changes).n_params - llama().n_params == more


def test_experts_by_hand() -> None:
    moe = Moe(n_experts=10, top_k=2, expert_neurons=32, shared_neurons=16, shared_gate=True, first_dense=1)
    shape = llama(moe=moe)
    expert, router, shared = 3 * 64 * 32, 64 * 10, 3 * 64 * 16 + 64
    assert [shape.has_experts(layer) for layer in range(3)] == [False, True, True]
    assert shape.parts["ffn"] == shape.ffn_params + 2 * (10 * expert + router + shared)
    assert shape.n_params - shape.n_active_params == 2 * 8 * expert
    assert shape.matmul_params == 3 * shape.attention_params + shape.ffn_params + 6400 + 2 * (
        2 * expert + router + shared
    )
    assert not shape.is_dense
    assert shape.with_layers(1).is_dense


def test_every_other_layer_has_experts() -> None:
    shape = shape_named("llama_4_maverick")
    assert shape.n_moe_layers == 24
    assert [shape.has_experts(layer) for layer in range(4)] == [False, True, False, True]


def test_latent_attention_by_hand() -> None:
    latent = LatentAttention(
        q_lora_rank=24, kv_lora_rank=20, qk_nope_head_dim=12, qk_rope_head_dim=4, v_head_dim=10
    )
    shape = llama(latent=latent, n_kv_heads=8)
    query = 64 * 24 + 24 * 8 * 16
    keys_and_values = 64 * (20 + 4) + 20 * 8 * (12 + 10)
    assert shape.attention_params == query + keys_and_values + 8 * 10 * 64
    assert shape.qk_norm_params == 24 + 20
    assert shape.kv_items_per_token == 3 * (20 + 4)
    assert shape.value_dim == 10
    plain = llama(latent=latent.model_copy(update={"q_lora_rank": None}), n_kv_heads=8)
    assert plain.attention_params == shape.attention_params - query + 64 * 8 * 16


def test_the_cache_of_deepseek_v3() -> None:
    """Its report (arXiv 2412.19437): 576 numbers per token and layer, 70 KB per token in bfloat16."""
    shape = shape_named("deepseek_v3")
    assert shape.kv_items_per_token == 61 * 576
    assert shape.kv_bytes(1, "bfloat16") == pytest.approx(70e3, rel=0.01)


# --- flops -------------------------------------------------------------------------------------------------


def test_scores_are_four_l_h_e_t_and_half_when_causal() -> None:
    full = llama(causal=False).score_flops_per_token(1000)
    assert full == 4 * 3 * 8 * 16 * 1000
    assert llama().score_flops_per_token(1000) == full / 2


def test_training_flops_are_six_n_plus_twelve_l_d_t() -> None:
    """The usual estimate (arXiv 2204.02311 appendix B), without the embedding and with every pair counted."""
    shape, tokens = shape_named("slm_1b").changed(causal=False), 1024
    estimate = 6 * (shape.n_params - shape.parts["embedding"]) + 12 * shape.n_layers * shape.d_model * tokens
    assert 3 * shape.forward_flops_per_token(tokens) == pytest.approx(estimate, rel=1e-3)


def test_a_window_bounds_the_scores() -> None:
    windowed = llama(sliding_window=100)
    assert windowed.n_windowed_layers == 3
    assert windowed.score_flops_per_token(100) == llama().score_flops_per_token(100)
    far = windowed.score_flops_per_token(10**7) / (4 * 3 * 8 * 16)
    assert far == pytest.approx(100, rel=1e-4)


def test_windows_alternate_with_full_attention() -> None:
    shape = shape_named("gemma_2_9b")
    assert [shape.is_windowed(layer) for layer in range(4)] == [True, False, True, False]
    assert (shape.n_windowed_layers, shape.n_layers) == (21, 42)
    assert shape_named("mistral_7b").n_windowed_layers == 32
    assert shape_named("gemma_3_27b").n_windowed_layers == 52
    assert shape_named("llama_3_8b").n_windowed_layers == 0


@given(st.sampled_from(sorted(all_presets())), st.integers(1, 200_000))
def test_what_holds_for_every_shape(name: str, context: int) -> None:
    shape = shape_named(name)
    assert sum(shape.parts.values()) == shape.n_params
    assert all(part >= 0 for part in shape.parts.values())
    assert 0 < shape.n_active_params <= shape.n_params
    assert shape.small_params >= 0
    assert shape.score_flops_per_token(context) <= shape.score_flops_per_token(context + 1)
    unmasked = shape.changed(sliding_window=None, causal=False)
    assert shape.score_flops_per_token(context) <= unmasked.score_flops_per_token(context)


@given(st.sampled_from(sorted(all_presets())), st.data())
def test_layers_add_up(name: str, data: st.DataObject) -> None:
    shape = shape_named(name)
    n = data.draw(st.integers(1, shape.n_layers))
    part = shape.with_layers(n)
    assert part.n_layers == n
    assert part.parts["embedding"] == shape.parts["embedding"]
    assert part.parts["attention"] * shape.n_layers == shape.parts["attention"] * n
    assert part.kv_items_per_token * shape.n_layers == shape.kv_items_per_token * n
    assert part.n_params <= shape.n_params
    assert part == (shape if n == shape.n_layers else shape_named(f"{name}_{n}l"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_kv_heads": 3}, "n_kv_heads 3 must divide n_heads 8"),
        ({"n_positions": 5}, "n_positions are the rows of learned positions"),
        ({"positions": "learned"}, "n_positions are the rows of learned positions"),
        ({"n_layers": 0}, "greater than or equal to 1"),
        ({"depth": 3}, "Extra inputs are not permitted"),
        ({"moe": {"n_experts": 2, "top_k": 3, "expert_neurons": 4}}, "top_k 3 is more than n_experts 2"),
        (
            {"latent": {"kv_lora_rank": 4, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4}},
            "head_dim of latent attention is qk_nope_head_dim . qk_rope_head_dim: write 8",
        ),
    ],
)
def test_shapes_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        llama(**changes)
    with pytest.raises(ValueError, match="n_kv_heads 3 must divide"):
        llama().changed(n_kv_heads=3)


# --- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("published", "preset"),
    [
        ("MPT-30b", "mpt_30b"),
        ("MPT-1.3B", "mpt_1b"),
        ("meta-llama/Llama-2-70b-hf", "llama_2_70b"),
        ("llama2-70b-99.9", "llama_2_70b"),
        ("meta-llama/Meta-Llama-3-8B", "llama_3_8b"),
        ("Llama 3.1 8B", "llama_3_1_8b"),
        ("Llama 3.2:3b", "llama_3_2_3b"),
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "llama_3_1_8b"),
        ("GPT-3 175B", "gpt_3_175b"),
        ("GPT-2-124M (speedrun)", "gpt_2_124m"),
        ("mistralai/Mixtral-8x7B-v0.1", "mixtral_8x7b"),
        ("MT-NLG-530B", "megatron_530b"),
        ("gpt-oss 20b", "gpt_oss_20b"),
        ("deepseek-ai/DeepSeek-R1", "deepseek_r1"),
        ("DeepSeek R1 14b", "qwen_2_5_14b"),
        ("facebook/opt-6.7b", "opt_6_7b"),
        ("slm_1b", "slm_1b"),
        ("T5-3B", None),
        ("OPT-6.7B / Falcon-7B", None),
        ("several (see source)", None),
        ("", None),
    ],
)
def test_published_names(published: str, preset: str | None) -> None:
    assert preset_for(published) == preset


def test_every_preset_is_found_by_its_own_name_and_has_a_source() -> None:
    for name in all_presets():
        assert preset_for(name) == name
        assert base_name(name) == base_name(f"{name}_1l") == name
        assert preset_sources()[name].strip()


def test_a_preset_is_found_in_its_family_or_elsewhere() -> None:
    assert shape_named("gpt_oss_20b").is_dense is False  # stands in other.yaml, though gpt.yaml exists
    assert base_name("no_such_model_3l") == "no_such_model"


@dataclasses.dataclass(frozen=True)
class Table:
    """A file of published measurements, and models in it that have no decoder of one kind to describe them."""

    file: str
    without: frozenset[str]


TABLES = (
    Table(
        "training_throughput",
        frozenset({"T5-3B", "T5-220M", "mT5-390M", "BERT-20B", "BERT-100B"}),
    ),
    Table("training_memory_megatron", frozenset()),
    Table("finetune_litgpt", frozenset()),
    Table("op_mlp_vidur", frozenset()),
)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.file)
def test_models_of_published_tables_are_known(table: Table, reference_folder: Path) -> None:
    with (reference_folder / f"{table.file}.csv").open() as lines:
        names = {row["model"] for row in csv.DictReader(lines)}
    assert {name for name in names if preset_for(name) is None} <= table.without


def test_shapes_equal_those_printed_beside_the_timings(reference_folder: Path) -> None:
    """The per-layer timings print width, FFN and heads of each model; the vocabulary is padded there."""
    with (reference_folder / "op_mlp_vidur.csv").open() as lines:
        rows = {row["model"]: row for row in csv.DictReader(lines)}
    for name, row in rows.items():
        shape = shape_named(preset_for(name) or "")
        found = (shape.d_model, shape.n_neurons, shape.n_heads, shape.n_kv_heads, shape.n_vectors == 3)
        sizes = tuple(int(row[key]) for key in ("hidden", "ffn", "n_head", "n_kv_head"))
        assert found == (*sizes, row["gated_mlp"] == "True")


def test_counts_equal_those_printed_beside_the_throughputs(reference_folder: Path) -> None:
    """llm-foundry prints the exact count of each MPT at each sequence length."""
    with (reference_folder / "training_throughput.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["source_group"] == "llm-foundry"]
    for row in rows:
        shape = shape_named(preset_for(row["model"]) or "").with_positions(int(row["seq_len_tokens"]))
        assert shape.n_params == int(row["params_count"])
