"""Families of decoders with experts, or with latent attention. Defaults are those of the configuration classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sandtable import units
from sandtable_workloads.transformer.families.dense import GATED, LLAMA, LLAMA_FLAGS, QWEN2, QWEN3, sized, windowed
from sandtable_workloads.transformer.families.family import Family, Fields, HfConfig
from sandtable_workloads.transformer.shapes import LatentAttention, Moe

More = Callable[[HfConfig, Fields], Fields]


def _moe(c: HfConfig, *, neurons: str = "expert_neurons", **more: Any) -> Fields:
    n_experts, top_k = c.size("experts"), c.size("top_k")
    if top_k > n_experts:
        raise c.fault(f"{c.names('top_k')[0]}: top_k {top_k} is more than n_experts {n_experts}")
    return {"moe": Moe(n_experts=n_experts, top_k=top_k, expert_neurons=c.size(neurons), **more)}


def _plain(c: HfConfig, found: Fields) -> Fields:
    """All layers have experts, as large as ``intermediate_size``, and none that is shared."""
    return _moe(c, neurons="neurons")


def _shared_width(c: HfConfig, found: Fields) -> Fields:
    return _moe(c, neurons="neurons", shared_neurons=c.size("shared_neurons", 0, least=0))


def _first_dense(c: HfConfig) -> int:
    """Read which layers have no experts; known here are the first few."""
    layers = c.items("mlp_only_layers") or []
    if layers != list(range(len(layers))):
        raise c.fault("mlp_only_layers is not known here unless these are the first layers: 0, 1, and so on")
    return len(layers)


def _qwen(c: HfConfig, *, shared: bool) -> Fields:
    return _moe(
        c,
        shared_neurons=c.size("shared_neurons") if shared else 0,
        shared_gate=shared,
        first_dense=_first_dense(c),
        every=c.count("decoder_sparse_step", default=1),
    )


def _gpt_oss(c: HfConfig, found: Fields) -> Fields:
    return _moe(c, neurons="neurons", router_bias=True, expert_bias=True)


def _llama4(c: HfConfig, found: Fields) -> Fields:
    neurons = c.size("neurons")
    every = c.count("interleave_moe_layer_step", default=1)
    dense = c.count("intermediate_size_mlp", default=16384 if c.nested else None)
    return {"n_neurons": dense} | _moe(c, neurons="neurons", shared_neurons=neurons, every=every)


def _minimax_m2(c: HfConfig, found: Fields) -> Fields:
    norms = {"qk_norm": "all_heads" if c.flag("use_qk_norm", True) else "none"}
    return norms | _moe(c, neurons="neurons", router_bias=c.flag("use_routing_bias", True))


def _dbrx(c: HfConfig, found: Fields) -> Fields:
    attention, ffn = c.part("attn_config"), c.part("ffn_config")
    moe = Moe(
        n_experts=ffn.count("moe_num_experts", least=2),
        top_k=ffn.count("moe_top_k"),
        expert_neurons=ffn.count("ffn_hidden_size"),
    )
    return {"n_kv_heads": attention.count("kv_n_heads"), "n_neurons": moe.expert_neurons, "moe": moe}


def _phimoe(c: HfConfig, found: Fields) -> Fields:
    return {"head_bias": c.flag("lm_head_bias")}


def _shared_of(c: HfConfig, *, router_bias: bool) -> Fields:
    """DeepSeek's way: so many shared experts, each as large as a routed one; the first layers are dense."""
    shared = c.size("shared_experts", least=0)
    return _moe(
        c,
        shared_neurons=shared * c.size("expert_neurons"),
        first_dense=c.size("first_dense", least=0),
        router_bias=router_bias,
    )


def _deepseek_moe(c: HfConfig, found: Fields) -> Fields:
    """No experts where the file says so, with null or zero: leaving them out is no way to say it."""
    names = c.names("experts")
    if c.count("moe_layer_freq", default=1) != 1 or c.flag("mlp_bias", False):
        raise c.fault("moe_layer_freq other than 1, and mlp_bias, are not known here")
    if any(c.is_null(name) for name in names) and c.given(*names) is None:
        return {}
    c.size("experts")  # missed before what only experts have
    default = "greedy" if c.model_type == "deepseek_v2" else "noaux_tc"  # the third generation knows no other
    return _shared_of(c, router_bias=c.word("topk_method", default) == "noaux_tc")


def _latent(c: HfConfig, found: Fields) -> Fields:
    """DeepSeek-V2 and V3, and Kimi K2 that is built like it; predicting a second token ahead is left out."""
    own = c.family.defaults if c.nested else {}
    nope, rope = (c.count(key, default=own.get(key)) for key in ("qk_nope_head_dim", "qk_rope_head_dim"))
    query = None if c.is_null("q_lora_rank") else c.count("q_lora_rank", default=1536 if c.nested else None)
    latent = LatentAttention(
        q_lora_rank=query,
        kv_lora_rank=c.count("kv_lora_rank", default=own.get("kv_lora_rank")),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        v_head_dim=c.count("v_head_dim", default=own.get("v_head_dim")),
    )
    return {"head_dim": nope + rope, "n_kv_heads": found["n_heads"], "latent": latent}


def _indexer(c: HfConfig, found: Fields) -> Fields:
    """DeepSeek-V3.2: small heads choose which tokens attention sees; they are held, and not run here."""
    heads, dim, width = c.count("index_n_heads"), c.count("index_head_dim"), found["d_model"]
    rank = found["latent"].q_lora_rank or width
    layer = rank * heads * dim + width * dim + 2 * dim + width * heads
    total = found["n_layers"] * layer
    c.notes.append(
        f"the indexer of its sparse attention ({units.format_count(total)} parameters) is counted, not run: "
        "attention is counted in full"
    )
    return {"other_params": total}


def _glm4_moe(c: HfConfig, found: Fields) -> Fields:
    norms = {"qk_norm": "per_head" if c.flag("use_qk_norm") else "none"}
    return norms | _shared_of(c, router_bias=True)


_LATENT_SIZES = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "kv_lora_rank": 512}
_DEEPSEEK = GATED.like(
    _latent,
    _deepseek_moe,
    flags=LLAMA_FLAGS,
    defaults=sized(61, 7168, 18432, 128, 129280, experts=256, top_k=8, expert_neurons=2048)
    | {"shared_experts": 1, "first_dense": 3}
    | _LATENT_SIZES,
)
_QWEN3_MOE_SIZES = sized(24, 2048, 6144, 32, 151936, kv_heads=4, experts=128, top_k=8, expert_neurons=768)
_MIXTRAL_SIZES = sized(32, 4096, 14336, 32, 32000, kv_heads=8, experts=8, top_k=2)
_GLM_SIZES = sized(46, 4096, 10944, 96, 151552, kv_heads=8, experts=128, top_k=8, expert_neurons=1408)
_QWEN3_MOE = QWEN3.like(lambda c, found: _qwen(c, shared=False), defaults=_QWEN3_MOE_SIZES)
_GRANITE = LLAMA.like(_shared_width, defaults=sized(32, 4096, 11008, 32, 32000, experts=8, top_k=2))

EXPERTS: dict[str, Family] = {
    "dbrx": GATED.like(
        _dbrx,
        fixed={"norm": "layer_no_bias"},
        usual={"layers": "n_layers", "width": "d_model", "heads": "n_heads"},
        defaults={"neurons_per_width": 4},
    ),
    "deepseek_v2": _DEEPSEEK.like(
        defaults=sized(32, 4096, 11008, 32, 32000, experts=64, shared_experts=2, first_dense=0, expert_neurons=1407)
    ),
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v32": _DEEPSEEK.like(_indexer),
    "dots1": QWEN3.like(
        lambda c, found: _shared_of(c, router_bias=True), defaults={"shared_experts": 0, "first_dense": 0}
    ),
    "glm4_moe": GATED.like(
        _glm4_moe,
        flags={"attention_bias": "attention_bias"},
        defaults=_GLM_SIZES | {"shared_experts": 1, "first_dense": 1},
    ),
    "glm_moe_dsa": _DEEPSEEK.like(_indexer),
    "gpt_oss": GATED.like(
        windowed,
        _gpt_oss,
        fixed={"attention_sinks": True},
        flags=LLAMA_FLAGS,
        defaults=sized(36, 2880, 2880, 64, 201088, kv_heads=8, head_dim=64, experts=128, top_k=4)
        | {"attention_bias": True, "window": 128, "full_every": 2},
    ),
    "granitemoe": _GRANITE,
    "granitemoeshared": _GRANITE,
    "kimi_k2": _DEEPSEEK.like(
        defaults=sized(61, 7168, 18432, 64, 163840, experts=384, first_dense=1, shared_experts=1)
    ),
    "llama4_text": GATED.like(
        windowed,
        _llama4,
        defaults=sized(48, 5120, 8192, 40, 202048, kv_heads=8, head_dim=128, experts=16, top_k=1)
        | {"window": 8192, "full_every": 4},
    ),
    "minimax_m2": GATED.like(_minimax_m2),
    "mixtral": GATED.like(windowed, _plain, defaults=_MIXTRAL_SIZES),
    "olmoe": GATED.like(
        _plain,
        fixed={"qk_norm": "all_heads"},
        flags=LLAMA_FLAGS,
        defaults=sized(16, 2048, 2048, 16, 50304, experts=64, top_k=8),
    ),
    "phimoe": GATED.like(
        windowed,
        _plain,
        _phimoe,
        fixed={"norm": "layer"},
        flags=LLAMA_FLAGS,
        defaults=sized(32, 4096, 6400, 32, 32064, kv_heads=8, experts=16, top_k=2),
    ),
    "qwen2_moe": QWEN2.like(
        lambda c, found: _qwen(c, shared=True),
        defaults=sized(24, 2048, 5632, 16, 151936, kv_heads=16, experts=60, top_k=4, expert_neurons=1408)
        | {"shared_neurons": 5632},
    ),
    "qwen3_moe": _QWEN3_MOE,
    "qwen3_vl_moe_text": _QWEN3_MOE.like(
        defaults=sized(24, 2048, 5632, 16, 151936, kv_heads=16, experts=60, top_k=4, expert_neurons=1408)
        | {"head_dim": None}
    ),
}
