"""Read the shape of a model from the ``config.json`` that stands beside its weights on Hugging Face.

Defaults are those of the configuration classes of the library transformers, which such a file leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sandtable.errors import ConfigError, did_you_mean
from sandtable.text_files import read_json
from sandtable_workloads.transformer.shapes import Activation, LatentAttention, ModelShape, Moe

_ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
    "swiglu": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "geglu": "gelu",
}


class HfConfig:
    """The mapping of a ``config.json`` with its file, so that what is missing can be said in one sentence."""

    def __init__(self, data: dict[str, Any], file: str) -> None:
        self.data, self.file = data, file
        self.model_type = str(data.get("model_type"))

    def get(self, key: str, default: Any = None) -> Any:
        """Return a field, or ``default`` where it is absent or null."""
        value = self.data.get(key)
        return default if value is None else value

    def number(self, *keys: str) -> int:
        """Return the first of ``keys`` that is there, a positive integer.

        Raises:
            ConfigError: none is there, or it is no positive integer.
        """
        key = next((key for key in keys if self.data.get(key) is not None), None)
        if key is None:
            raise ConfigError(f"a {self.model_type} model needs {keys[0]!r}: add it, a number", file=self.file)
        value = self.data[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{key} must be a positive whole number, not {value!r}", file=self.file)
        return value

    def activation(self, *keys: str, default: str) -> Activation:
        """Return the activation that the first of ``keys`` names."""
        name = str(next((self.data[key] for key in keys if self.data.get(key)), default))
        if name not in _ACTIVATIONS:
            raise ConfigError(f"activation {name!r} is not known{did_you_mean(name, _ACTIVATIONS)}", file=self.file)
        return _ACTIVATIONS[name]


Fields = dict[str, Any]
Reader = Callable[[HfConfig], Fields]


def from_hf_config(path: str | Path) -> ModelShape:
    """Return the shape that a Hugging Face ``config.json`` (or the folder that holds one) describes.

    Raises:
        ConfigError: no such file, not JSON, not a transformer that is known here, or a field that is missing.
    """
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    config = _text_part(read_json(path), str(path))
    reader = READERS.get(config.model_type)
    if reader is None:
        raise ConfigError(
            f"model_type {config.model_type!r} is no transformer that is known here"
            f"{did_you_mean(config.model_type, READERS)}; a preset of the same shape will do",
            file=str(path),
        )
    name = path.stem if path.stem != "config" else path.resolve().parent.name
    try:
        return ModelShape(name=_as_name(name), **reader(config))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where}: {message}" if where else message, file=str(path)) from None


def _text_part(data: Any, file: str) -> HfConfig:
    """Return the configuration of the language model, which models of text and images keep in a part of theirs."""
    if not isinstance(data, dict):
        raise ConfigError("a JSON object is needed, as in a Hugging Face config.json", file=file)
    if "model_type" not in data:
        raise ConfigError("this is no Hugging Face config.json: it has no 'model_type'", file=file)
    nested = data.get("text_config")
    if isinstance(nested, dict) and nested.get("model_type") in READERS:
        return HfConfig({"tie_word_embeddings": data.get("tie_word_embeddings")} | nested, file)
    return HfConfig(data, file)


def _as_name(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text.lower()).strip("_") or "model"


# --- families ------------------------------------------------------------------------------------------------


def _sizes(c: HfConfig, *, layers: Sequence[str], width: Sequence[str], heads: Sequence[str]) -> Fields:
    """Read what every family has, under its own names."""
    d_model, n_heads = c.number(*width), c.number(*heads)
    head_dim = c.get("head_dim")
    if head_dim is None and d_model % n_heads:
        raise ConfigError(f"{heads[0]} {n_heads} does not divide {width[0]} {d_model}: add 'head_dim'", file=c.file)
    return {
        "n_layers": c.number(*layers),
        "d_model": d_model,
        "n_heads": n_heads,
        "n_kv_heads": n_heads,
        "head_dim": d_model // n_heads if head_dim is None else head_dim,
        "vocabulary": c.number("vocab_size"),
    }


def _usual(c: HfConfig) -> Fields:
    return _sizes(c, layers=("num_hidden_layers",), width=("hidden_size",), heads=("num_attention_heads",))


_ALL_BIASES = {"attention_bias": True, "output_bias": True, "ffn_bias": True}


def _gated(c: HfConfig) -> Fields:
    """Llama and all that is built like it: RMS norms, rotary positions, a gated FFN, grouped key/value heads."""
    bias = bool(c.get("attention_bias", c.get("bias", False)))
    sizes = _usual(c)
    return sizes | {
        "n_neurons": c.number("intermediate_size"),
        "n_vectors": 3,
        "activation": c.activation("hidden_act", "hidden_activation", default="silu"),
        "n_kv_heads": c.get("num_key_value_heads", sizes["n_heads"]),
        "tied": bool(c.get("tie_word_embeddings", False)),
        "attention_bias": bias,
        "output_bias": bias,
        "ffn_bias": bool(c.get("mlp_bias", False)),
    }


def _windowed(c: HfConfig, default: int | None = None) -> Fields:
    """Read the window, and every how many layers it is lifted."""
    window = c.get("sliding_window", default)
    if not window or c.data.get("use_sliding_window") is False:
        return {}
    return {"sliding_window": window, "full_attention_every": _full_every(c)}


def _full_every(c: HfConfig) -> int:
    """Return every how many layers one sees all tokens, from ``layer_types`` or ``sliding_window_pattern``."""
    kinds = c.get("layer_types")
    if kinds is None:
        return int(c.get("sliding_window_pattern", 0))
    full = [kind == "full_attention" for kind in kinds]
    every = full.index(True) + 1 if any(full) else 0
    if full != [every > 0 and (layer + 1) % every == 0 for layer in range(len(full))]:
        raise ConfigError("layer_types must repeat: some windowed layers, then a full one", file=c.file)
    return every


def _opt(c: HfConfig) -> Fields:
    sizes = _usual(c)
    before = bool(c.get("do_layer_norm_before", True))
    width = c.get("word_embed_proj_dim", sizes["d_model"])
    biases = _ALL_BIASES if c.get("enable_bias", True) else {}
    return (
        sizes
        | biases
        | {
            "n_neurons": c.number("ffn_dim"),
            "activation": c.activation("activation_function", default="relu"),
            "tied": bool(c.get("tie_word_embeddings", True)),
            "embedding_dim": None if width == sizes["d_model"] else width,
            "norm": "layer",
            "final_norm": before and not c.get("_remove_final_layer_norm", False),
            "positions": "learned",
            "n_positions": c.number("max_position_embeddings") + 2,  # two rows that padding once used
        }
    )


def _gpt2(c: HfConfig) -> Fields:
    sizes = _sizes(c, layers=("n_layer",), width=("n_embd",), heads=("n_head",))
    return (
        sizes
        | _ALL_BIASES
        | {
            "n_neurons": c.get("n_inner", 4 * sizes["d_model"]),
            "activation": c.activation("activation_function", default="gelu_new"),
            "norm": "layer",
            "positions": "learned",
            "n_positions": c.number("n_positions"),
        }
    )


def _gptj(c: HfConfig) -> Fields:
    sizes = _sizes(c, layers=("n_layer",), width=("n_embd",), heads=("n_head",))
    return sizes | {
        "n_neurons": c.get("n_inner", 4 * sizes["d_model"]),
        "activation": c.activation("activation_function", default="gelu_new"),
        "tied": False,
        "ffn_bias": True,
        "head_bias": True,
        "norm": "layer",
        "norms_per_layer": 1,
    }


def _gpt_neox(c: HfConfig) -> Fields:
    biases = {"attention_bias": True, "output_bias": True} if c.get("attention_bias", True) else {}
    return (
        _usual(c)
        | biases
        | {
            "n_neurons": c.number("intermediate_size"),
            "activation": c.activation("hidden_act", default="gelu"),
            "tied": bool(c.get("tie_word_embeddings", False)),
            "ffn_bias": True,
            "norm": "layer",
        }
    )


def _mpt(c: HfConfig) -> Fields:
    sizes = _sizes(c, layers=("n_layers",), width=("d_model",), heads=("n_heads",))
    attention = c.get("attn_config", {})
    has_bias, alibi = not c.get("no_bias", False), bool(attention.get("alibi", False))
    learned = bool(c.get("learned_pos_emb", True)) and not alibi
    kv_heads = {"multiquery_attention": 1, "grouped_query_attention": attention.get("kv_n_heads")}
    return (
        sizes
        | (_ALL_BIASES if has_bias else {})
        | {
            "n_kv_heads": kv_heads.get(attention.get("attn_type")) or sizes["n_heads"],
            "n_neurons": round(c.get("expansion_ratio", 4) * sizes["d_model"]),
            "activation": "gelu",
            "norm": "layer" if has_bias else "layer_no_bias",
            "qk_norm": "all_heads" if attention.get("qk_ln") else "none",
            "positions": "alibi" if alibi else "learned" if learned else "rotary",
            "n_positions": c.number("max_seq_len") if learned else 0,
        }
    )


def _bloom(c: HfConfig) -> Fields:
    sizes = _sizes(
        c,
        layers=("n_layer", "num_hidden_layers"),
        width=("hidden_size", "n_embed"),
        heads=("n_head", "num_attention_heads"),
    )
    return (
        sizes
        | _ALL_BIASES
        | {
            "n_neurons": 4 * sizes["d_model"],
            "activation": "gelu",
            "norm": "layer",
            "embedding_norm": True,
            "positions": "alibi",
        }
    )


def _falcon(c: HfConfig) -> Fields:
    sizes = _usual(c)
    grouped, parallel = bool(c.get("new_decoder_architecture", False)), bool(c.get("parallel_attn", True))
    kv_heads = c.get("num_kv_heads", sizes["n_heads"]) if grouped else 1 if c.get("multi_query", True) else None
    two_norms = c.get("num_ln_in_parallel_attn", 2 if grouped else 1) == 2 or not parallel
    return (
        sizes
        | (_ALL_BIASES if c.get("bias", False) else {})
        | {
            "n_kv_heads": kv_heads or sizes["n_heads"],
            "n_neurons": c.get("ffn_hidden_size", 4 * sizes["d_model"]),
            "activation": c.activation("activation", default="gelu"),
            "tied": bool(c.get("tie_word_embeddings", True)),
            "norm": "layer",
            "norms_per_layer": 2 if two_norms else 1,
            "positions": "alibi" if c.get("alibi", False) else "rotary",
        }
    )


def _phi(c: HfConfig) -> Fields:
    sizes = _usual(c)
    return (
        sizes
        | _ALL_BIASES
        | {
            "n_neurons": c.number("intermediate_size"),
            "activation": c.activation("hidden_act", default="gelu_new"),
            "n_kv_heads": c.get("num_key_value_heads", sizes["n_heads"]),
            "tied": bool(c.get("tie_word_embeddings", False)),
            "head_bias": True,
            "norm": "layer",
            "norms_per_layer": 1,
            "qk_norm": "per_head" if c.get("qk_layernorm", False) else "none",
        }
    )


def _persimmon(c: HfConfig) -> Fields:
    return (
        _usual(c)
        | _ALL_BIASES
        | {
            "n_neurons": c.number("intermediate_size"),
            "activation": c.activation("hidden_act", default="relu2"),
            "tied": bool(c.get("tie_word_embeddings", False)),
            "norm": "layer",
            "qk_norm": "per_head" if c.get("qk_layernorm", True) else "none",
        }
    )


def _nemotron(c: HfConfig) -> Fields:
    return _gated(c) | {"n_vectors": 2, "activation": c.activation("hidden_act", default="relu2"), "norm": "layer"}


def _stablelm(c: HfConfig) -> Fields:
    bias = bool(c.get("use_qkv_bias", False))
    parallel = bool(c.get("use_parallel_residual", False))
    norms = {"norm": "layer", "norms_per_layer": 1 if parallel else 2}
    return _gated(c) | norms | {"attention_bias": bias, "output_bias": False}


def _qwen(c: HfConfig) -> Fields:
    """First generation: half of ``intermediate_size`` is one of the two gated halves."""
    return _usual(c) | {
        "n_neurons": c.number("intermediate_size") // 2,
        "n_vectors": 3,
        "tied": bool(c.get("tie_word_embeddings", False)),
        "attention_bias": True,
    }


def _qwen2(c: HfConfig) -> Fields:
    window = _windowed(c) if c.get("use_sliding_window", False) else {}
    return _gated(c) | window | {"attention_bias": True, "output_bias": False}


def _qwen3(c: HfConfig) -> Fields:
    return _gated(c) | {"qk_norm": "per_head"}


def _gemma(c: HfConfig) -> Fields:
    activation = c.activation("hidden_activation", "hidden_act", default="gelu_pytorch_tanh")
    return _gated(c) | {"tied": bool(c.get("tie_word_embeddings", True)), "activation": activation}


def _gemma2(c: HfConfig) -> Fields:
    return _gemma(c) | {"norms_per_layer": 4, "full_attention_every": 2} | _or_every(_windowed(c, 4096), 2)


# what the files of the larger Gemma 3 leave to the class
_GEMMA3 = {"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}


def _gemma3(c: HfConfig) -> Fields:
    c = HfConfig(_GEMMA3 | c.data, c.file)
    own = {"norms_per_layer": 4, "qk_norm": "per_head"}
    return _gemma(c) | own | _or_every(_windowed(c, 4096), 6)


def _or_every(window: Fields, every: int) -> Fields:
    return window | {"full_attention_every": window.get("full_attention_every") or every}


# --- experts -------------------------------------------------------------------------------------------------


def _mixtral(c: HfConfig) -> Fields:
    moe = Moe(
        n_experts=c.number("num_local_experts"),
        top_k=c.number("num_experts_per_tok"),
        expert_neurons=c.number("intermediate_size"),
    )
    return _gated(c) | _windowed(c) | {"moe": moe}


def _qwen_moe(c: HfConfig, *, shared: bool) -> Moe:
    if c.get("mlp_only_layers"):
        raise ConfigError("mlp_only_layers is not known here: only 'decoder_sparse_step' is", file=c.file)
    return Moe(
        n_experts=c.number("num_experts", "num_local_experts"),
        top_k=c.number("num_experts_per_tok"),
        expert_neurons=c.number("moe_intermediate_size"),
        shared_neurons=c.number("shared_expert_intermediate_size") if shared else 0,
        shared_gate=shared,
        every=c.get("decoder_sparse_step", 1),
    )


def _qwen2_moe(c: HfConfig) -> Fields:
    return _qwen2(c) | {"moe": _qwen_moe(c, shared=True)}


def _qwen3_moe(c: HfConfig) -> Fields:
    return _qwen3(c) | {"moe": _qwen_moe(c, shared=False)}


def _gpt_oss(c: HfConfig) -> Fields:
    moe = Moe(
        n_experts=c.number("num_local_experts"),
        top_k=c.number("num_experts_per_tok", "experts_per_token"),
        expert_neurons=c.number("intermediate_size"),
        router_bias=True,
        expert_bias=True,
    )
    biases = {"attention_bias": True, "output_bias": True} if c.get("attention_bias", True) else {}
    return _gated(c) | biases | _or_every(_windowed(c, 128), 2) | {"attention_sinks": True, "moe": moe}


def _llama4(c: HfConfig) -> Fields:
    neurons = c.number("intermediate_size")
    moe = Moe(
        n_experts=c.number("num_local_experts"),
        top_k=c.number("num_experts_per_tok"),
        expert_neurons=neurons,
        shared_neurons=neurons,
        every=c.get("interleave_moe_layer_step", 1),
    )
    window = {"sliding_window": c.get("attention_chunk_size", 8192), "full_attention_every": 4}
    return _gated(c) | window | {"n_neurons": c.number("intermediate_size_mlp"), "moe": moe}


def _minimax_m2(c: HfConfig) -> Fields:
    moe = Moe(
        n_experts=c.number("num_local_experts"),
        top_k=c.number("num_experts_per_tok"),
        expert_neurons=c.number("intermediate_size"),
        router_bias=bool(c.get("use_routing_bias", True)),
    )
    return _gated(c) | {"qk_norm": "all_heads" if c.get("use_qk_norm", True) else "none", "moe": moe}


def _deepseek(c: HfConfig) -> Fields:
    """DeepSeek-V2 and V3, and Kimi K2 that is built like it; predicting a second token ahead is left out."""
    nope, rope = c.number("qk_nope_head_dim"), c.number("qk_rope_head_dim")
    latent = LatentAttention(
        q_lora_rank=c.get("q_lora_rank"),
        kv_lora_rank=c.number("kv_lora_rank"),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        v_head_dim=c.number("v_head_dim"),
    )
    return _gated(c) | {"head_dim": nope + rope, "latent": latent, "moe": _deepseek_moe(c)}


def _deepseek_moe(c: HfConfig) -> Moe | None:
    if c.get("n_routed_experts") is None:
        return None
    neurons = c.number("moe_intermediate_size")
    return Moe(
        n_experts=c.number("n_routed_experts"),
        top_k=c.number("num_experts_per_tok"),
        expert_neurons=neurons,
        shared_neurons=c.get("n_shared_experts", 0) * neurons,
        first_dense=c.get("first_k_dense_replace", 0),
        # newer files leave the method out: the third generation knows no other
        router_bias=c.get("topk_method", "greedy" if c.model_type == "deepseek_v2" else "noaux_tc") == "noaux_tc",
    )


READERS: dict[str, Reader] = {
    "bloom": _bloom,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "falcon": _falcon,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "gpt_oss": _gpt_oss,
    "gptj": _gptj,
    "internlm": _gated,
    "kimi_k2": _deepseek,
    "llama": _gated,
    "llama4_text": _llama4,
    "minimax_m2": _minimax_m2,
    "mistral": lambda c: _gated(c) | _windowed(c),
    "mixtral": _mixtral,
    "mpt": _mpt,
    "nemotron": _nemotron,
    "opt": _opt,
    "persimmon": _persimmon,
    "phi": _phi,
    "phi3": lambda c: _gated(c) | _windowed(c),
    "qwen": _qwen,
    "qwen2": _qwen2,
    "qwen2_moe": _qwen2_moe,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "stablelm": _stablelm,
}
