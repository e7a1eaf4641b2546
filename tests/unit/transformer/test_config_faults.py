"""What people feed in place of a plain config.json: honoured, or answered in one sentence that names the field."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sandtable.errors import ConfigError
from sandtable_workloads.transformer import ModelShape, from_hf_config, shape_named
from sandtable_workloads.transformer.families import REFUSED
from sandtable_workloads.transformer.hf_config import shape_of

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
}
GPT_2 = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257}
DEEPSEEK = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "num_routed_experts": 256,
    "num_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
GEMMA_3 = {
    "model_type": "gemma3",
    "text_config": {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240}
    | {"num_hidden_layers": 34, "sliding_window": 1024},
    "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 1152, "num_hidden_layers": 27}
    | {"intermediate_size": 4304, "num_attention_heads": 16},
}


def read(config: Any) -> ModelShape:
    return shape_of(config, "config.json", "mine")


# --- honoured ------------------------------------------------------------------------------------------------


def test_other_names_of_the_same_fields_are_the_same_model() -> None:
    assert read(DEEPSEEK).n_params == shape_named("deepseek_v3").n_params
    mapped = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12}
    assert read({k: v for k, v in GPT_2.items() if k[:3] not in ("n_e", "n_h", "n_l")} | mapped) == read(GPT_2)


def test_a_head_of_its_own() -> None:
    assert read(GPT_2).n_params == 124_439_808
    assert read(GPT_2 | {"tie_word_embeddings": False}).n_params == 124_439_808 + 50257 * 768


def test_null_is_left_out_and_a_whole_float_is_a_number() -> None:
    odd = LLAMA | {"head_dim": None, "hidden_act": None, "tie_word_embeddings": None, "vocab_size": 32000.0}
    assert read(odd) == read(LLAMA)


def test_a_class_fills_what_a_composite_leaves_out() -> None:
    llava = {"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}}
    found = read(llava | {"vision_config": {"hidden_size": 1024}})
    assert found.n_params == 7_063_427_072
    assert (found.d_model, found.n_neurons, found.n_layers, found.n_heads) == (4096, 11008, 32, 32)


def test_a_tower_is_counted_and_said_not_to_run() -> None:
    found = read(GEMMA_3)
    assert found.n_params == 4_300_079_472
    assert found.n_active_params == shape_named("gemma_3_4b").n_params
    assert found.notes == ("the vision tower (420M parameters) is counted, not run: text alone is",)


@pytest.mark.parametrize(
    ("config", "note"),
    [
        (GEMMA_3 | {"vision_config": {"model_type": "vit_of_mine"}}, "the vision part is left out"),
        (GEMMA_3 | {"vision_config": None}, "the vision tower is left out: the file does not say its size"),
        (GEMMA_3 | {"audio_config": {"hidden_size": 8}}, "the audio part is left out"),
        (
            {"model_type": "llava", **{k: v for k, v in LLAMA.items() if k != "model_type"}},
            "vision tower is left out",
        ),
    ],
)
def test_what_is_left_out_is_named(config: Any, note: str) -> None:
    assert any(note in found for found in read(config).notes)


@pytest.mark.parametrize(
    ("packed", "bits", "group"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4, 128),
        ({"quant_method": "gptq", "bits": 3, "group_size": -1}, 3, None),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}, 8, None),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4, None),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8, None),
        ({"quant_method": "mxfp4"}, 4, None),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8}}}}, 8, None),
        ({"quant_algo": "NVFP4"}, 4, None),
        ({"quant_method": "hqq"}, None, None),
    ],
)
def test_packed_weights_are_known_and_named(packed: Any, bits: int | None, group: int | None) -> None:
    found = read(LLAMA | {"quantization_config": packed})
    assert found.stored is not None
    assert (found.stored.bits, found.stored.group_size) == (bits, group)
    assert [note for note in found.notes if note.startswith("quantization_config")]
    assert found.n_params == read(LLAMA).n_params


def test_a_window_of_some_layers_is_counted_in_full_and_named() -> None:
    qwen = LLAMA | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4096}
    late = read(qwen | {"max_window_layers": 20})
    assert late.sliding_window is None
    assert late.notes == ("12 layers have a sliding window: attention is counted in full",)
    assert read(qwen | {"max_window_layers": 0}).n_windowed_layers == 32


def test_the_indexer_of_sparse_attention_is_held() -> None:
    found = read(DEEPSEEK | {"model_type": "deepseek_v32", "index_n_heads": 64, "index_head_dim": 128})
    layer = 1536 * 64 * 128 + 7168 * 128 + 2 * 128 + 7168 * 64
    assert found.n_params - shape_named("deepseek_v3").n_params == 61 * layer


def test_experts_are_none_only_where_the_file_says_so() -> None:
    dense = {k: v for k, v in DEEPSEEK.items() if "expert" not in k and not k.startswith(("moe", "first"))}
    assert read(dense | {"n_routed_experts": None}).moe is None
    with pytest.raises(ConfigError, match="needs 'n_routed_experts'"):
        read(dense)


# --- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_saved_on_windows(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(json.dumps(LLAMA, indent=1).replace("\n", "\r\n").encode(encoding))
    assert from_hf_config(path).n_params == 6_738_415_616


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    assert from_hf_config(path).n_layers == 32
    path.write_text(json.dumps(LLAMA | {"num_hidden_layers": 8}))
    assert from_hf_config(path).n_layers == 8


def test_what_is_no_config(tmp_path: Path) -> None:
    (tmp_path / "empty.json").touch()
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x00")
    (tmp_path / "deep.json").write_text('{"model_type": "llama", "x": ' + "[" * 100_000)
    (tmp_path / "big.json").write_text('{"model_type": "llama", "hidden_size": ' + "9" * 5000 + "}")
    (tmp_path / "twice.json").write_text('{"model_type": "llama", "hidden_size": 64, "hidden_size": 128}')
    os.mkfifo(tmp_path / "pipe.json")
    for name, sentence in {
        "empty.json": "empty",
        "model.safetensors": "these are weights",
        "deep.json": "too deep",
        "big.json": "not valid JSON",
        "twice.json": "'hidden_size' stands twice",
        "pipe.json": "pipe",
        "none/config.json": "no such file",
        ".": "holds no config",
    }.items():
        with pytest.raises(ConfigError, match=sentence) as caught:
            from_hf_config(tmp_path / name)
        assert "\n" not in str(caught.value)


# --- refused in one sentence -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_built_otherwise_is_refused_by_what_it_has(kind: str) -> None:
    for config in (LLAMA | {"model_type": kind}, {"model_type": "any_vl", "text_config": {"model_type": kind}}):
        with pytest.raises(ConfigError, match=f"a {kind} model has ") as caught:
            read(config)
        assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("kind", ["deepseek_v4", "llama5", "minimax_m3", "qwen4"])
def test_a_later_generation_is_not_taken_for_an_earlier_one(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"is no transformer that is known here$"):
        read(LLAMA | {"model_type": kind})


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (LLAMA | {"num_hidden_layers": 10**8}, "num_hidden_layers 100000000 is more than a model can have"),
        (LLAMA | {"hidden_size": 10**400}, r"hidden_size 1000.* … is more than"),
        (LLAMA | {"head_dim": -64}, "head_dim must be a positive whole number, not -64"),
        (LLAMA | {"vocab_size": True}, "vocab_size must be a positive whole number, not True"),
        (LLAMA | {"vocab_size": 1.5}, r"vocab_size must be a positive whole number, not 1\.5"),
        (LLAMA | {"vocab_size": float("nan")}, "vocab_size must be a positive whole number, not nan"),
        (LLAMA | {"vocab_size": [32000]}, r"vocab_size must be a positive whole number, not \[32000\]"),
        (LLAMA | {"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false, not 'false'"),
        (LLAMA | {"hidden_act": ["silu"]}, "hidden_act must be a text"),
        (LLAMA | {"n_embd": 64}, "hidden_size 4096 and n_embd 64 differ: keep one"),
        (LLAMA | {"num_routed_experts": 8}, "num_routed_experts 8 is no field of a llama model"),
        (LLAMA | {"kv_lora_rank": 512}, "kv_lora_rank 512 is no field of a llama model"),
        (LLAMA | {"layer_types": ["mamba"] * 32}, "layer_types has 'mamba'"),
        (LLAMA | {"layer_types": 5}, "layer_types must be a list, not 5"),
        (
            LLAMA | {"model_type": "mistral", "sliding_window": 5, "sliding_window_pattern": "x"},
            "_pattern must be a",
        ),
        (LLAMA | {"model_type": 7}, "model_type must be a text"),
        (LLAMA | {"quantization_config": "awq"}, "quantization_config must be an object"),
        ({"model_type": "llava", "text_config": "llama"}, "text_config must be an object"),
        ({"model_type": "any_vl", "text_config": {"hidden_size": 8}}, "text_config has no 'model_type'"),
        ({"peft_type": "LORA", "base_model_name_or_path": "x"}, "this describes an adapter"),
        (GPT_2 | {"num_key_value_heads": 1}, "gpt2 models have as many key/value heads as heads"),
        (LLAMA | {"model_type": "mpt", "attn_config": "flash"}, "attn_config must be an object"),
        (LLAMA | {"model_type": "mpt", "expansion_ratio": "4"}, "expansion_ratio must be a positive number"),
        (LLAMA | {"model_type": "chatglm"}, "only a chatglm model with multi_query_attention"),
        (DEEPSEEK | {"moe_layer_freq": 2}, "moe_layer_freq other than 1"),
        (GEMMA_3 | {"vision_config": 7}, "vision_config must be an object"),
        (GEMMA_3 | {"vision_config": {"hidden_size": "x"}}, "hidden_size must be a positive whole number"),
    ],
)
def test_odd_fields_are_one_sentence(config: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        read(config)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_number_too_long_for_a_float_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA).replace("4096", "9" * 400))
    with pytest.raises(ConfigError, match="is beyond anything there is"):
        from_hf_config(path)
