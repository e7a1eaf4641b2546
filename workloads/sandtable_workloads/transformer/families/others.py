"""Encoders, and the kinds of model that are refused, each with what it has and is not known here."""

from __future__ import annotations

from sandtable_workloads.transformer.families.dense import BIASES, sized
from sandtable_workloads.transformer.families.family import Family, Fields, HfConfig


def _bert(c: HfConfig, found: Fields) -> Fields:
    """Positions and kinds of segment are one table; what is behind the layers depends on the class that is loaded."""
    kinds = c.count("type_vocab_size", default=c.family.defaults["kinds"], least=0)
    return {"n_positions": c.size("positions") + kinds} | _behind(c, found["d_model"], found["vocabulary"])


def _behind(c: HfConfig, d: int, vocabulary: int) -> Fields:
    """A pooler of D² + D, run once a sequence; or what foretells hidden tokens: D² + D, a norm, a bias each."""
    named = c.items("architectures") or ["MaskedLM"]
    name = str(named[0])
    pooler, masked = d * d + d, d * d + 3 * d
    if name.endswith("MaskedLM"):
        return {"other_params": masked, "head_bias": True}
    if name.endswith("PreTraining"):
        return {"other_params": masked + pooler + 2 * d + 2, "head_bias": True}
    return {"other_params": pooler if name.endswith("Model") else 0}


def _distilbert(c: HfConfig, found: Fields) -> Fields:
    named = str((c.items("architectures") or ["MaskedLM"])[0])
    masked = {"other_params": found["d_model"] ** 2 + 3 * found["d_model"], "head_bias": True}
    return {"n_positions": c.size("positions")} | (masked if named.endswith("MaskedLM") else {})


def _modernbert(c: HfConfig, found: Fields) -> Fields:
    """The norm behind the embedding stands in for the first layer's own."""
    c.notes.append("most layers see a window only: attention is counted in full")
    return {"other_params": found["d_model"] ** 2 + found["d_model"], "head_bias": c.flag("decoder_bias", True)}


_ENCODER = Family(
    fixed=BIASES
    | {"norm": "layer", "embedding_norm": True, "final_norm": False, "positions": "learned", "causal": False}
    | {"tied": True},
    defaults=sized(12, 768, 3072, 12, 30522, positions=512) | {"activation": "gelu", "kinds": 2},
    grouped=False,
)
_BERT = _ENCODER.like(_bert)
ENCODERS: dict[str, Family] = {
    "bert": _BERT,
    "distilbert": _ENCODER.like(
        _distilbert,
        usual={"layers": "n_layers", "width": "dim", "heads": "n_heads", "neurons": "hidden_dim"},
        defaults=sized(6, 768, 3072, 12, 30522),
    ),
    "modernbert": Family(
        fixed={"n_vectors": 3, "norm": "layer_no_bias", "causal": False, "tied": True},
        flags={"attention_bias": "attention_bias", "output_bias": "attention_bias", "ffn_bias": "mlp_bias"},
        defaults=sized(22, 768, 1152, 12, 50368) | {"activation": "gelu"},
        grouped=False,
        more=(_modernbert,),
    ),
    "roberta": _BERT.like(defaults={"vocabulary": 50265}),
    "xlm-roberta": _BERT,
}

_TWO_STACKS = "an encoder and a decoder that looks at it with cross-attention"
_STATES = "state-space layers"
_LINEAR = "layers of linear attention"
REFUSED: dict[str, str] = {
    "albert": "layers that share their weights",
    "bamba": _STATES,
    "bart": _TWO_STACKS,
    "deberta": "attention to positions of its own",
    "deberta-v2": "attention to positions of its own",
    "deci": "layers of different shapes",
    "falcon_h1": _STATES,
    "falcon_mamba": _STATES,
    "gemma3n": "per-layer embeddings and layers that share keys and values",
    "gemma3n_text": "per-layer embeddings and layers that share keys and values",
    "gemma4": "layers of different head sizes, and per-layer embeddings",
    "gemma4_text": "layers of different head sizes, and per-layer embeddings",
    "granitemoehybrid": _STATES,
    "jamba": _STATES,
    "jetmoe": "experts of attention",
    "kimi_linear": _LINEAR,
    "lfm2": "layers of short convolutions",
    "lfm2_moe": "layers of short convolutions",
    "longt5": _TWO_STACKS,
    "m2m_100": _TWO_STACKS,
    "mamba": _STATES,
    "mamba2": _STATES,
    "marian": _TWO_STACKS,
    "mbart": _TWO_STACKS,
    "minimax": _LINEAR,
    "minimax_text_01": _LINEAR,
    "mllama": "layers of cross-attention to images",
    "mllama_text_model": "layers of cross-attention to images",
    "mt5": _TWO_STACKS,
    "nemotron-nas": "layers of different shapes",
    "nemotron_h": _STATES,
    "openelm": "layers of different shapes",
    "pegasus": _TWO_STACKS,
    "qwen3_5": _LINEAR,
    "qwen3_5_moe": _LINEAR,
    "qwen3_5_moe_text": _LINEAR,
    "qwen3_5_text": _LINEAR,
    "qwen3_next": _LINEAR,
    "recurrent_gemma": "recurrent layers",
    "retnet": "layers of retention",
    "rwkv": "recurrent layers",
    "rwkv5": "recurrent layers",
    "rwkv6": "recurrent layers",
    "rwkv7": "recurrent layers",
    "t5": _TWO_STACKS,
    "t5gemma": _TWO_STACKS,
    "umt5": _TWO_STACKS,
    "whisper": _TWO_STACKS,
    "xlnet": "attention to positions of its own",
    "zamba": _STATES,
    "zamba2": _STATES,
}
