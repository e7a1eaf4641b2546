"""A config.json becomes the shape of its preset, and what is no such file is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sandtable.errors import ConfigError, UnknownName
from sandtable_workloads.transformer import from_hf_config, shape_named


def usual(layers: int, width: int, neurons: int, heads: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": neurons,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
    } | more


DEEPSEEK_V3 = usual(61, 7168, 18432, 128, 129280, num_key_value_heads=128, tie_word_embeddings=False) | {
    "model_type": "deepseek_v3",
    "first_k_dense_replace": 3,
    "kv_lora_rank": 512,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
}
GPT_OSS_LAYERS = ["sliding_attention", "full_attention"] * 12

# what the files of these repositories say, as far as it bears on the shape
CONFIGS: dict[str, dict[str, Any]] = {
    "bloom_560m": {
        "model_type": "bloom",
        "n_embed": 1024,
        "n_layer": 24,
        "num_attention_heads": 16,
        "vocab_size": 250880,
    },
    "deepseek_v2_lite": usual(27, 2048, 10944, 16, 102400)
    | {
        "model_type": "deepseek_v2",
        "first_k_dense_replace": 1,
        "kv_lora_rank": 512,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "topk_method": "greedy",
        "v_head_dim": 128,
    },
    "deepseek_v3": DEEPSEEK_V3,
    "kimi_k2": DEEPSEEK_V3
    | {
        "model_type": "kimi_k2",
        "num_attention_heads": 64,
        "num_key_value_heads": 64,
        "vocab_size": 163840,
        "n_routed_experts": 384,
        "first_k_dense_replace": 1,
    },
    "falcon_7b": {
        "model_type": "falcon",
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "vocab_size": 65024,
        "multi_query": True,
        "parallel_attn": True,
        "bias": False,
        "alibi": False,
        "new_decoder_architecture": False,
    },
    "falcon_40b": {
        "model_type": "falcon",
        "hidden_size": 8192,
        "num_hidden_layers": 60,
        "num_attention_heads": 128,
        "num_kv_heads": 8,
        "vocab_size": 65024,
        "multi_query": True,
        "parallel_attn": True,
        "bias": False,
        "alibi": False,
        "new_decoder_architecture": True,
    },
    "gemma_2b": usual(18, 2048, 16384, 8, 256000, head_dim=256, num_key_value_heads=1)
    | {"model_type": "gemma", "hidden_act": "gelu"},
    "gemma_2_9b": usual(42, 3584, 14336, 16, 256000, head_dim=256, num_key_value_heads=8)
    | {"model_type": "gemma2", "hidden_act": "gelu_pytorch_tanh", "sliding_window": 4096},
    "gemma_3_1b": usual(26, 1152, 6912, 4, 262144, head_dim=256, num_key_value_heads=1)
    | {"model_type": "gemma3_text", "sliding_window": 512, "sliding_window_pattern": 6},
    "gemma_3_4b": {
        "model_type": "gemma3",
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 1152},
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "sliding_window": 1024,
        },
    },
    "gpt_2_124m": {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024}
    | {"vocab_size": 50257, "activation_function": "gelu_new"},
    "gpt_j_6b": {"model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_layer": 28, "n_inner": None}
    | {"vocab_size": 50400, "tie_word_embeddings": False},
    "gpt_oss_20b": usual(24, 2880, 2880, 64, 201088, head_dim=64, num_key_value_heads=8, attention_bias=True)
    | {
        "model_type": "gpt_oss",
        "layer_types": GPT_OSS_LAYERS,
        "num_experts_per_tok": 4,
        "num_local_experts": 32,
        "sliding_window": 128,
        "hidden_act": "silu",
    },
    "internlm_20b": usual(60, 5120, 13824, 40, 103168, bias=False) | {"model_type": "internlm"},
    "llama_2_70b": usual(80, 8192, 28672, 64, 32000, num_key_value_heads=8) | {"model_type": "llama"},
    "llama_3_2_1b": usual(16, 2048, 8192, 32, 128256, num_key_value_heads=8, head_dim=64)
    | {"model_type": "llama", "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False},
    "llama_4_scout": {
        "model_type": "llama4",
        "tie_word_embeddings": False,
        "text_config": usual(48, 5120, 8192, 40, 202048, num_key_value_heads=8, head_dim=128)
        | {
            "model_type": "llama4_text",
            "attention_chunk_size": 8192,
            "intermediate_size_mlp": 16384,
            "interleave_moe_layer_step": 1,
            "num_experts_per_tok": 1,
            "num_local_experts": 16,
        },
    },
    "minimax_m2": usual(62, 3072, 1536, 48, 200064, num_key_value_heads=8, head_dim=128)
    | {"model_type": "minimax_m2", "num_local_experts": 256, "num_experts_per_tok": 8}
    | {"use_qk_norm": True, "qk_norm_type": "per_layer", "use_routing_bias": True},
    "mistral_7b": usual(32, 4096, 14336, 32, 32000, num_key_value_heads=8)
    | {"model_type": "mistral", "sliding_window": 4096},
    "mixtral_8x7b": usual(32, 4096, 14336, 32, 32000, num_key_value_heads=8)
    | {"model_type": "mixtral", "sliding_window": None, "num_local_experts": 8, "num_experts_per_tok": 2},
    "mpt_7b_alibi": {"model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32, "vocab_size": 50432}
    | {"expansion_ratio": 4, "no_bias": True, "learned_pos_emb": True, "attn_config": {"alibi": True}},
    "mpt_125m": {"model_type": "mpt", "d_model": 768, "n_heads": 12, "n_layers": 12, "vocab_size": 50368}
    | {"max_seq_len": 2048, "attn_config": {"attn_impl": "triton"}},
    "nemotron_22b": usual(40, 6144, 24576, 48, 256000, num_key_value_heads=48)
    | {"model_type": "nemotron", "hidden_act": "relu2"},
    "opt_6_7b": {"model_type": "opt", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
    | {"ffn_dim": 16384, "vocab_size": 50272, "max_position_embeddings": 2048, "word_embed_proj_dim": 4096},
    "opt_350m": {"model_type": "opt", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    | {"ffn_dim": 4096, "vocab_size": 50272, "max_position_embeddings": 2048, "word_embed_proj_dim": 512}
    | {"do_layer_norm_before": False},
    "persimmon_8b": usual(36, 4096, 16384, 64, 262144) | {"model_type": "persimmon", "hidden_act": "relu2"},
    "phi_2": usual(32, 2560, 10240, 32, 51200) | {"model_type": "phi", "hidden_act": "gelu_new"},
    "phi_3_mini": usual(32, 3072, 8192, 32, 32064, num_key_value_heads=32)
    | {"model_type": "phi3", "sliding_window": 2047},
    "pythia_6_9b": usual(32, 4096, 16384, 32, 50432) | {"model_type": "gpt_neox", "hidden_act": "gelu"},
    "qwen_72b": usual(80, 8192, 49152, 64, 152064) | {"model_type": "qwen"},
    "qwen_2_5_0_5b": usual(24, 896, 4864, 14, 151936, num_key_value_heads=2)
    | {"model_type": "qwen2", "tie_word_embeddings": True, "sliding_window": 32768, "use_sliding_window": False},
    "qwen_1_5_moe_a2_7b": usual(24, 2048, 5632, 16, 151936, num_key_value_heads=16)
    | {
        "model_type": "qwen2_moe",
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "qwen_3_8b": usual(36, 4096, 12288, 32, 151936, num_key_value_heads=8, head_dim=128)
    | {"model_type": "qwen3", "attention_bias": False},
    "qwen_3_30b_a3b": usual(48, 2048, 6144, 32, 151936, num_key_value_heads=4, head_dim=128)
    | {
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "decoder_sparse_step": 1,
    },
    "stablelm_3b_4e1t": usual(32, 2560, 6912, 32, 50304, num_key_value_heads=32)
    | {"model_type": "stablelm", "use_qkv_bias": False},
}


def written(folder: Path, config: Any, name: str = "config.json") -> Path:
    path = folder / name
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_the_preset_of_its_name(name: str, tmp_path: Path) -> None:
    found = from_hf_config(written(tmp_path, CONFIGS[name]))
    wanted = shape_named(name)
    assert found.changed(name=name, title=wanted.title, notes=(), other_params=0) == wanted


def test_the_third_deepseek_corrects_its_router_even_where_the_file_is_silent(tmp_path: Path) -> None:
    silent = {key: value for key, value in DEEPSEEK_V3.items() if key != "topk_method"}
    assert from_hf_config(written(tmp_path, silent)).n_params == shape_named("deepseek_v3").n_params


def test_by_folder_by_path_and_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "My-Model"
    folder.mkdir()
    path = written(folder, CONFIGS["llama_2_70b"])
    assert from_hf_config(folder) == shape_named(str(path))
    assert shape_named(str(path)).name == "my_model"
    assert shape_named(str(written(tmp_path, CONFIGS["phi_2"], "phi two.json"))).name == "phi_two"


LLAMA = CONFIGS["llama_2_70b"]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("{", r"config.json:1: not valid JSON"),
        ([1], "a JSON object is needed"),
        ({"architectures": ["x"]}, "this is no Hugging Face config.json: it has no 'model_type'"),
        ({"model_type": "resnet"}, "model_type 'resnet' is no transformer that is known here"),
        ({"model_type": "lama"}, r"\(did you mean 'llama'"),
        ({k: v for k, v in LLAMA.items() if k != "num_hidden_layers"}, "a llama model needs 'num_hidden_layers'"),
        ({k: v for k, v in LLAMA.items() if k != "vocab_size"}, "a llama model needs 'vocab_size'"),
        (LLAMA | {"hidden_size": "8192"}, "hidden_size must be a positive whole number, not '8192'"),
        (LLAMA | {"hidden_size": -1}, "hidden_size must be a positive whole number, not -1"),
        (LLAMA | {"num_attention_heads": 63}, "num_key_value_heads 8 must divide num_attention_heads 63"),
        (
            CONFIGS["opt_6_7b"] | {"num_attention_heads": 63},
            "num_attention_heads 63 does not divide hidden_size 4096",
        ),
        (LLAMA | {"num_key_value_heads": 7}, "num_key_value_heads 7 must divide num_attention_heads 64"),
        (
            LLAMA | {"num_key_value_heads": "many"},
            "num_key_value_heads must be a positive whole number, not 'many'",
        ),
        (LLAMA | {"hidden_act": "tanh"}, "activation 'tanh' is not known"),
        (CONFIGS["mixtral_8x7b"] | {"num_experts_per_tok": 9}, "top_k 9 is more than n_experts 8"),
        (CONFIGS["gpt_oss_20b"] | {"layer_types": ["full_attention", *GPT_OSS_LAYERS]}, "names 25 layers"),
        (CONFIGS["gpt_oss_20b"] | {"layer_types": GPT_OSS_LAYERS[:22] + ["full_attention"] * 2}, "must repeat"),
        (CONFIGS["gpt_oss_20b"] | {"layer_types": ["linear_attention"] * 24}, "layer_types has 'linear_attention'"),
        (CONFIGS["qwen_3_30b_a3b"] | {"mlp_only_layers": [0, 3]}, "mlp_only_layers is not known here"),
        (CONFIGS["deepseek_v3"] | {"kv_lora_rank": None}, "a deepseek_v3 model needs 'kv_lora_rank'"),
        ({"model_type": "gpt2", "n_layer": 12}, "a gpt2 model needs 'n_embd'"),
    ],
)
def test_what_is_refused(config: Any, sentence: str, tmp_path: Path) -> None:
    path = written(tmp_path, config)
    with pytest.raises(ConfigError, match=sentence) as caught:
        shape_named(str(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_no_such_file_or_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this folder holds no config"):
        shape_named(str(tmp_path / "config.json"))
    with pytest.raises(ConfigError, match="no such file"):
        shape_named(str(tmp_path / "other.json"))
    with pytest.raises(UnknownName, match="did you mean 'llama_2_7b'"):
        shape_named("llama_2_7")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="no UTF-16-LE text"):
        from_hf_config(path)
