"""Families of decoders without experts. Defaults are those of the configuration classes of transformers 4.57, or of
the code beside the weights where a family is none of its classes.
"""

from __future__ import annotations

from typing import Any

from sandtable_workloads.transformer.families.family import Family, Fields, HfConfig, shown

LLAMA_FLAGS = {"tied": "tie_word_embeddings", "attention_bias": "attention_bias", "output_bias": "attention_bias"}
BIASES = {"attention_bias": True, "output_bias": True, "ffn_bias": True}


def sized(layers: int, width: int, neurons: int, heads: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    """Return the defaults of a class, by the keys of `family.NAMES`."""
    sizes = {"layers": layers, "width": width, "neurons": neurons, "heads": heads, "vocabulary": vocabulary}
    return sizes | more


# --- windows -------------------------------------------------------------------------------------------------


def windowed(c: HfConfig, found: Fields) -> Fields:
    """Read the window, and every how many layers it is lifted; a class's own are among its defaults."""
    window = c.count("sliding_window", "attention_chunk_size", default=c.family.defaults.get("window", 0), least=0)
    every = _full_every(c, found["n_layers"])
    own = c.family.defaults.get("full_every", 0)
    if not window or not c.flag("use_sliding_window", c.family.defaults.get("use_window", True)):
        return {}
    return {"sliding_window": window, "full_attention_every": own if every is None else every}


def _full_every(c: HfConfig, n_layers: int) -> int | None:
    """Return every how many layers one sees all tokens, from ``layer_types`` or the pattern's length."""
    kinds = c.items("layer_types")
    if kinds is None:
        every = c.count("sliding_window_pattern", "_sliding_window_pattern", default=0, least=0)
        return every or None
    known = {"full_attention": True, "sliding_attention": False, "chunked_attention": False}
    for kind in kinds:
        if not isinstance(kind, str) or kind not in known:
            raise c.fault(f"layer_types has {shown(kind)}, which is not known here: only layers of attention are")
    if len(kinds) != n_layers:
        raise c.fault(f"layer_types names {len(kinds)} layers, and {c.names('layers')[0]} says {n_layers}")
    full = [known[kind] for kind in kinds]
    every = full.index(True) + 1 if any(full) else 0
    if full != [every > 0 and (layer + 1) % every == 0 for layer in range(len(full))]:
        raise c.fault("layer_types must repeat: some windowed layers, then a full one")
    return every


def _late_window(c: HfConfig, found: Fields) -> Fields:
    """Qwen 2: the first ``max_window_layers`` see all, where windows are used at all."""
    first = c.count("max_window_layers", default=28, least=0)
    window = windowed(c, found)
    if not window or not first or c.given("layer_types"):
        return window
    if first < found["n_layers"]:
        c.notes.append(f"{found['n_layers'] - first} layers have a sliding window: attention is counted in full")
    return {}


# --- what single families have -------------------------------------------------------------------------------


def _learned(c: HfConfig, found: Fields) -> Fields:
    return {"n_positions": c.size("positions")}


def _opt(c: HfConfig, found: Fields) -> Fields:
    before = c.flag("do_layer_norm_before", True)
    width = c.count("word_embed_proj_dim", default=found["d_model"])
    biases = BIASES if c.flag("enable_bias", True) else {}
    return biases | {
        "embedding_dim": None if width == found["d_model"] else width,
        "norm": "layer" if c.flag("layer_norm_elementwise_affine", True) else "layer_bare",
        "final_norm": before and not c.flag("_remove_final_layer_norm", False),
        "n_positions": c.size("positions") + 2,  # two rows that padding once used
    }


def _mpt(c: HfConfig, found: Fields) -> Fields:
    attention = c.part("attn_config")
    has_bias, alibi = not c.flag("no_bias"), attention.flag("alibi", False)
    learned = c.flag("learned_pos_emb", True) and not alibi
    kind = attention.word("attn_type", "multihead_attention")
    kv_heads = {"multihead_attention": found["n_heads"], "multiquery_attention": 1}.get(kind)
    return (BIASES if has_bias else {}) | {
        "n_kv_heads": attention.count("kv_n_heads") if kv_heads is None else kv_heads,
        "n_neurons": max(8, round(c.real("expansion_ratio", 4) * found["d_model"])),
        "norm": "layer" if has_bias else "layer_no_bias",
        "qk_norm": "all_heads" if attention.flag("qk_ln", False) else "none",
        "positions": "alibi" if alibi else "learned" if learned else "rotary",
        "n_positions": c.count("max_seq_len") if learned else 0,
    }


def _falcon(c: HfConfig, found: Fields) -> Fields:
    grouped, parallel = c.flag("new_decoder_architecture"), c.flag("parallel_attn", True)
    c.given(*c.names("kv_heads"))  # of no effect in the older architecture
    one = not grouped and c.flag("multi_query", True)
    kv_heads = 1 if one else c.size("kv_heads", found["n_heads"]) if grouped else found["n_heads"]
    norms = c.count("num_ln_in_parallel_attn", default=2 if grouped else 1)
    return (BIASES if c.flag("bias") else {}) | {
        "n_kv_heads": kv_heads,
        "norms_per_layer": 2 if norms == 2 or not parallel else 1,
        "positions": "alibi" if c.flag("alibi") else "rotary",
    }


def _bloom(c: HfConfig, found: Fields) -> Fields:
    return {"n_neurons": 4 * found["d_model"]}


def _gpt_neo(c: HfConfig, found: Fields) -> Fields:
    if "local" in str(c.given("attention_types", "attention_layers")):
        c.notes.append("every second layer sees a window only: attention is counted in full")
    return {}


def _one_kv_head(c: HfConfig, found: Fields) -> Fields:
    """StarCoder: all heads share one key and value, unless ``multi_query`` is off."""
    return {"n_kv_heads": 1 if c.flag("multi_query", True) else found["n_heads"]}


def _phi(c: HfConfig, found: Fields) -> Fields:
    return {"qk_norm": "per_head" if c.flag("qk_layernorm") else "none"}


def _stablelm(c: HfConfig, found: Fields) -> Fields:
    return {
        "norms_per_layer": 1 if c.flag("use_parallel_residual") else 2,
        "qk_norm": "each_head" if c.flag("qk_layernorm") else "none",
    }


def _cohere(c: HfConfig, found: Fields) -> Fields:
    return {"qk_norm": "each_head" if c.flag("use_qk_norm") else "none"}


def _qwen(c: HfConfig, found: Fields) -> Fields:
    """First generation: half of ``intermediate_size`` is one of the two gated halves."""
    return {"n_neurons": max(8, found["n_neurons"] // 2)}


def _chatglm(c: HfConfig, found: Fields) -> Fields:
    """ChatGLM 2 and 3, and the GLM-4 whose code lies beside its weights; the first ChatGLM was built otherwise."""
    if not c.flag("multi_query_attention", False):
        raise c.fault("only a chatglm model with multi_query_attention is known here: ChatGLM 2 and 3, GLM-4")
    linear = c.flag("add_bias_linear", False)
    norm = {"norm": "rms" if c.flag("rmsnorm", True) else "layer", "final_norm": c.flag("post_layer_norm", True)}
    return norm | {
        "n_kv_heads": c.size("kv_heads"),
        "attention_bias": linear or c.flag("add_qkv_bias", False),
        "output_bias": linear,
        "ffn_bias": linear,
    }


def _baichuan(c: HfConfig, found: Fields) -> Fields:
    """The 13B has no rotary positions, which only ``model_max_length`` in its file tells."""
    return {"positions": "alibi" if c.given("model_max_length") and found["n_layers"] >= 40 else "rotary"}


# --- tables ----------------------------------------------------------------------------------------------------

# Llama and all that is built like it: RMS norms, rotary positions, a gated FFN, grouped key/value heads
GATED = Family(fixed={"n_vectors": 3}, flags={"tied": "tie_word_embeddings"})
LLAMA = GATED.like(flags=LLAMA_FLAGS | {"ffn_bias": "mlp_bias"}, defaults=sized(32, 4096, 11008, 32, 32000))
QWEN2 = GATED.like(
    _late_window,
    fixed={"attention_bias": True},
    defaults=sized(32, 4096, 22016, 32, 151936, kv_heads=32, use_window=False),
)
_QWEN2_VL = QWEN2.like(defaults=sized(80, 8192, 29568, 64, 152064, kv_heads=8))
QWEN3 = GATED.like(
    _late_window,
    fixed={"qk_norm": "per_head"},
    flags=LLAMA_FLAGS,
    defaults=sized(32, 4096, 22016, 32, 151936, kv_heads=32, head_dim=128, use_window=False),
)
_GEMMA = GATED.like(
    flags=LLAMA_FLAGS,
    defaults=sized(28, 3072, 24576, 16, 256000, kv_heads=16, head_dim=256)
    | {"activation": "gelu_pytorch_tanh", "tie_word_embeddings": True},
)
_GEMMA_2_SIZES = sized(26, 2304, 9216, 8, 256000, kv_heads=4, window=4096)
_GEMMA_2 = _GEMMA.like(windowed, fixed={"norms_per_layer": 4}, defaults=_GEMMA_2_SIZES | {"full_every": 2})
_GEMMA_3 = _GEMMA_2.like(fixed={"qk_norm": "per_head"}, defaults={"full_every": 6, "vocabulary": 262208})
_COHERE = GATED.like(
    fixed={"norm": "layer_no_bias", "norms_per_layer": 1},
    flags=LLAMA_FLAGS,
    defaults=sized(40, 8192, 22528, 64, 256000) | {"tie_word_embeddings": True},
)
_GLM = GATED.like(
    flags={"attention_bias": "attention_bias"},
    defaults=sized(40, 4096, 13696, 32, 151552, kv_heads=2, head_dim=128) | {"attention_bias": True},
)
_OLMO = GATED.like(flags=LLAMA_FLAGS, defaults=sized(32, 4096, 11008, 32, 50304))
_OLMO_2 = _OLMO.like(fixed={"qk_norm": "all_heads"})
_BAICHUAN = GATED.like(_baichuan, defaults=sized(32, 4096, 11008, 32, 125696))

# GPT-2 and what came of it: two vectors a neuron, layer norms, 4 D neurons unless said otherwise
_GPT = Family(
    fixed={"norm": "layer"},
    flags={"tied": "tie_word_embeddings"},
    usual={
        "layers": "n_layer",
        "width": "n_embd",
        "heads": "n_head",
        "neurons": "n_inner",
        "positions": "n_positions",
    },
    defaults={"neurons_per_width": 4, "activation": "gelu_new", "tie_word_embeddings": True},
    grouped=False,
)
_GPT_2 = _GPT.like(_learned, fixed=BIASES | {"positions": "learned"}, defaults=sized(12, 768, 3072, 12, 50257))
_GPT_J = _GPT.like(
    fixed={"ffn_bias": True, "head_bias": True, "norms_per_layer": 1},
    defaults=sized(28, 4096, 16384, 16, 50400) | {"tie_word_embeddings": False},
)
_PLAIN = Family(fixed={"norm": "layer"}, flags={"tied": "tie_word_embeddings"}, grouped=False)
_PHI = Family(fixed={"norm": "layer"}, flags={"tied": "tie_word_embeddings"})
_FALCON = _PHI.like(
    _falcon,
    usual={"neurons": "ffn_hidden_size", "kv_heads": "num_kv_heads"},
    defaults={"neurons_per_width": 4, "activation": "gelu", "tie_word_embeddings": True},
)

DENSE: dict[str, Family] = {
    "arcee": LLAMA.like(
        fixed={"n_vectors": 2}, defaults=sized(32, 2560, 18432, 32, 32000) | {"activation": "relu2"}
    ),
    "aquila": LLAMA,
    "baichuan": _BAICHUAN,
    "bloom": _PLAIN.like(
        _bloom,
        fixed=BIASES | {"embedding_norm": True, "positions": "alibi"},
        usual={"layers": "n_layer"},
        defaults={"neurons_per_width": 4, "activation": "gelu", "tie_word_embeddings": True},
    ),
    "chatglm": GATED.like(
        _chatglm,
        usual={"layers": "num_layers", "neurons": "ffn_hidden_size", "vocabulary": "padded_vocab_size"},
        defaults=sized(28, 4096, 13696, 32, 65024, kv_heads=1),
    ),
    "codegen": _GPT_J,
    "cohere": _COHERE.like(_cohere),
    "cohere2": _COHERE.like(windowed, defaults={"window": 4096, "full_every": 4}),
    "falcon": _FALCON,
    "gemma": _GEMMA,
    "gemma2": _GEMMA_2,
    "gemma3_text": _GEMMA_3,
    "glm": _GLM,
    "glm4": _GLM.like(fixed={"norms_per_layer": 4}),
    "gpt2": _GPT_2,
    "gpt_bigcode": _GPT_2.like(_one_kv_head, defaults={"activation": "gelu_pytorch_tanh"}),
    "gpt_neo": _GPT_2.like(
        _gpt_neo,
        fixed={"attention_bias": False},
        usual={"layers": "num_layers", "width": "hidden_size", "heads": "num_heads", "neurons": "intermediate_size"}
        | {"positions": "max_position_embeddings"},
        defaults=sized(24, 2048, 8192, 16, 50257, positions=2048),
    ),
    "gpt_neox": _PLAIN.like(
        fixed={"ffn_bias": True},
        flags=LLAMA_FLAGS,
        defaults=sized(44, 6144, 24576, 64, 50432) | {"activation": "gelu", "attention_bias": True},
    ),
    "gptj": _GPT_J,
    "granite": LLAMA,
    "helium": GATED.like(
        flags={"attention_bias": "attention_bias", "ffn_bias": "mlp_bias"},
        defaults=sized(24, 2560, 7040, 20, 48000, kv_heads=20, head_dim=128),
    ),
    "internlm": GATED.like(flags={"attention_bias": "bias", "output_bias": "bias"}, defaults={"bias": True}),
    "internlm2": GATED.like(
        flags={"attention_bias": "bias", "output_bias": "bias"},
        defaults=sized(32, 4096, 11008, 32, 103168) | {"bias": True},
    ),
    "internlm3": GATED.like(flags={"attention_bias": "qkv_bias", "output_bias": "bias", "ffn_bias": "bias"}),
    "llama": LLAMA,
    "mimo": QWEN2,
    "minicpm": LLAMA,
    "ministral": GATED.like(windowed, defaults=sized(32, 4096, 14336, 32, 32000, kv_heads=8, window=4096)),
    "mistral": GATED.like(windowed, defaults=sized(32, 4096, 14336, 32, 32000, kv_heads=8)),
    "mpt": _PLAIN.like(
        _mpt,
        usual={"layers": "n_layers", "width": "d_model", "heads": "n_heads"},
        defaults={"neurons_per_width": 4, "activation": "gelu", "tie_word_embeddings": True},
    ),
    "nemotron": LLAMA.like(
        fixed={"n_vectors": 2, "norm": "layer"},
        defaults=sized(32, 6144, 24576, 48, 256000) | {"activation": "relu2"},
    ),
    "olmo": _OLMO.like(fixed={"norm": "layer_bare"}),
    "olmo2": _OLMO_2,
    "olmo3": _OLMO_2.like(windowed, defaults={"window": 4096, "full_every": 4}),
    "opt": _PLAIN.like(
        _opt,
        fixed={"positions": "learned"},
        usual={"neurons": "ffn_dim"},
        defaults=sized(12, 768, 3072, 12, 50272, positions=2048)
        | {"activation": "relu", "tie_word_embeddings": True},
    ),
    "persimmon": _PLAIN.like(
        _phi,
        fixed=BIASES,
        defaults=sized(36, 4096, 16384, 64, 262144) | {"activation": "relu2", "qk_layernorm": True},
    ),
    "phi": _PHI.like(
        _phi,
        fixed=BIASES | {"head_bias": True, "norms_per_layer": 1},
        defaults=sized(24, 2048, 8192, 32, 51200) | {"activation": "gelu_new"},
    ),
    "phi3": GATED.like(windowed, defaults=sized(32, 3072, 8192, 32, 32064)),
    "qwen": GATED.like(_qwen, fixed={"attention_bias": True}, defaults=sized(32, 4096, 22016, 32, 151936)),
    "qwen2": QWEN2,
    "qwen2_5_vl": _QWEN2_VL,
    "qwen2_5_vl_text": _QWEN2_VL,
    "qwen2_vl": _QWEN2_VL,
    "qwen2_vl_text": _QWEN2_VL,
    "qwen3": QWEN3,
    "qwen3_vl_text": QWEN3,
    "seed_oss": GATED.like(
        flags={"attention_bias": "attention_bias", "output_bias": "attention_out_bias", "ffn_bias": "mlp_bias"},
        defaults=sized(64, 4096, 27648, 80, 155136, kv_heads=8, head_dim=128) | {"attention_bias": True},
    ),
    "smollm3": LLAMA.like(
        windowed,
        defaults=sized(36, 2048, 11008, 16, 128256, kv_heads=4, use_window=False) | {"tie_word_embeddings": True},
    ),
    "stablelm": GATED.like(
        _stablelm,
        fixed={"norm": "layer"},
        flags={"attention_bias": "use_qkv_bias"},
        defaults=sized(32, 2560, 6912, 32, 50304, kv_heads=32),
    ),
    "starcoder2": _PHI.like(
        windowed,
        flags={"attention_bias": "use_bias", "output_bias": "use_bias", "ffn_bias": "use_bias"},
        defaults=sized(30, 3072, 12288, 24, 49152, kv_heads=2)
        | {"activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "use_bias": True},
    ),
    "xverse": LLAMA,
}
# what files said before transformers had these families
OLDER = {
    "RefinedWeb": "falcon",
    "RefinedWebModel": "falcon",
    "Yi": "llama",
    "stablelm_epoch": "stablelm",
    "InternLM": "internlm",
}
