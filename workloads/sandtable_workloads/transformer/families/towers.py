"""What composite models hold beside their language model: vision towers and what leads from them into the text.

Counted, not run: workloads here are of text. Defaults are those of the configuration classes of transformers 4.57;
Gemma 3's are those of the one tower that all its models share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sandtable_workloads.transformer.families.family import Family, HfConfig

# a composite's type -> what its text part is, where that part does not say so itself
TEXT_OF: Mapping[str, str] = {
    "aya_vision": "cohere2",
    "gemma3": "gemma3_text",
    "idefics3": "llama",
    "kimi_k25": "kimi_k2",
    "kimi_vl": "deepseek_v3",
    "llama4": "llama4_text",
    "llava": "llama",
    "llava_llama": "llama",
    "llava_next": "llama",
    "llava_onevision": "qwen2",
    "mistral3": "mistral",
    "paligemma": "gemma",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen2_vl": "qwen2_vl_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "smolvlm": "llama",
}
_CLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "image_size": 224,
    "patch_size": 32,
}
_SIGLIP = _CLIP | {"patch_size": 16, "vision_use_head": True}
_QWEN3_VL = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "patch_size": 16, "out_hidden_size": 3584}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "clip_vision_model": _CLIP,
    "siglip_vision_model": _SIGLIP,
    "pixtral": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "patch_size": 16},
    "qwen2_vl": {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4, "patch_size": 14},
    "qwen2_5_vl": {"depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "patch_size": 14}
    | {"out_hidden_size": 3584},
    "qwen3_vl": _QWEN3_VL | {"num_position_embeddings": 2304},
    "llama4_vision_model": {"hidden_size": 768, "intermediate_size": 5632, "num_hidden_layers": 34}
    | {"image_size": 448, "patch_size": 14, "projector_input_dim": 4096, "projector_output_dim": 4096}
    | {"vision_output_dim": 7680},
}
# towers that a composite takes in place of the class's own
_LLAVA = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "image_size": 336,
    "patch_size": 14,
}
_GEMMA_3 = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "image_size": 896} | {
    "patch_size": 14,
    "vision_use_head": False,
}
_OF_COMPOSITE: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "gemma3": ("siglip_vision_model", _GEMMA_3),
    "llava": ("clip_vision_model", _LLAVA),
    "llava_next": ("clip_vision_model", _LLAVA),
}


def tower_params(composite: HfConfig, text_width: int) -> int | None:
    """Return the parameters of a composite's vision tower and of what leads from it into the text.

    None where the tower, or the way, is none that is known here.
    """
    kind, own = _OF_COMPOSITE.get(composite.model_type, ("", {}))
    part = composite.part("vision_config")
    kind = str(composite.data["vision_config"].get("model_type") or kind or composite.model_type)
    kind = {"qwen3_vl_moe": "qwen3_vl"}.get(kind, kind)
    if kind not in _TOWERS or composite.model_type not in _WAYS:
        return None
    data = {**_DEFAULTS[kind], **own, **{key: value for key, value in part.data.items() if value is not None}}
    vision = HfConfig(data, composite.file, Family(), nested=True)
    return _TOWERS[kind](vision) + _WAYS[composite.model_type](composite, vision, text_width)


# --- towers --------------------------------------------------------------------------------------------------


def _layers(v: HfConfig, depth: str = "num_hidden_layers") -> int:
    """Layers as BERT's: attention and FFN with biases, two layer norms."""
    d, neurons = v.count("hidden_size"), v.count("intermediate_size")
    return v.count(depth, most=10_000) * (4 * (d * d + d) + 4 * d + 2 * d * neurons + neurons + d)


def _patches(v: HfConfig) -> int:
    return (v.count("image_size") // v.count("patch_size")) ** 2


def _pixels(v: HfConfig) -> int:
    return v.count("num_channels", "in_channels", "in_chans", default=3) * v.count("patch_size") ** 2


def _clip(v: HfConfig) -> int:
    d = v.count("hidden_size")
    return d * (_pixels(v) + 1 + _patches(v) + 1) + 4 * d + _layers(v)


def _siglip(v: HfConfig) -> int:
    d, neurons = v.count("hidden_size"), v.count("intermediate_size")
    head = 4 * (d * d + d) + 3 * d + 2 * d * neurons + neurons + d if v.flag("vision_use_head") else 0
    return d * (_pixels(v) + 1 + _patches(v)) + 2 * d + _layers(v) + head


def _pixtral(v: HfConfig) -> int:
    d, neurons = v.count("hidden_size"), v.count("intermediate_size")
    return d * _pixels(v) + d + v.count("num_hidden_layers", most=10_000) * (4 * d * d + 2 * d + 3 * d * neurons)


def _merger(d: int, out: int, merge: int) -> int:
    """Neighbouring patches joined, and two linear layers."""
    joined = d * merge * merge
    return joined * joined + joined + joined * out + out


def _qwen2_vl(v: HfConfig) -> int:
    d, out = v.count("embed_dim"), v.count("hidden_size")
    neurons = round(v.real("mlp_ratio", 4) * d)
    layer = 4 * (d * d + d) + 4 * d + 2 * d * neurons + neurons + d
    frames, merge = v.count("temporal_patch_size", default=2), v.count("spatial_merge_size", default=2)
    return d * _pixels(v) * frames + v.count("depth", most=10_000) * layer + 2 * d + _merger(d, out, merge)


def _qwen2_5_vl(v: HfConfig) -> int:
    d, neurons = v.count("hidden_size"), v.count("intermediate_size")
    layer = 4 * (d * d + d) + 2 * d + 3 * d * neurons + 2 * neurons + d
    frames, merge = v.count("temporal_patch_size", default=2), v.count("spatial_merge_size", default=2)
    merger = d + _merger(d, v.count("out_hidden_size"), merge)
    return d * _pixels(v) * frames + v.count("depth", most=10_000) * layer + merger


def _qwen3_vl(v: HfConfig) -> int:
    d, out = v.count("hidden_size"), v.count("out_hidden_size")
    frames, merge = v.count("temporal_patch_size", default=2), v.count("spatial_merge_size", default=2)
    found = v.items("deepstack_visual_indexes")
    deep = 3 if found is None else len(found)
    table = d * (_pixels(v) * frames + 1 + v.count("num_position_embeddings"))
    mergers = (deep + 1) * _merger(d, out, merge) + 2 * d + deep * 2 * d * merge * merge
    return table + _layers(v, "depth") + mergers


def _llama4(v: HfConfig) -> int:
    d, joined = v.count("hidden_size"), v.count("projector_input_dim")
    adapter = v.count("intermediate_size") * joined + joined * v.count("projector_output_dim")
    return d * (_pixels(v) + 1 + _patches(v) + 1) + 4 * d + _layers(v) + adapter


_TOWERS: Mapping[str, Callable[[HfConfig], int]] = {
    "clip_vision_model": _clip,
    "llama4_vision_model": _llama4,
    "pixtral": _pixtral,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen2_vl": _qwen2_vl,
    "qwen3_vl": _qwen3_vl,
    "siglip_vision_model": _siglip,
}

# --- ways from the tower into the text -----------------------------------------------------------------------


def _two_linears(c: HfConfig, v: HfConfig, text: int) -> int:
    layers = c.data.get("vision_feature_layer")
    bias = 2 * text if c.flag("multimodal_projector_bias", c.model_type != "mistral3") else 0
    return v.count("hidden_size") * (len(layers) if isinstance(layers, list) else 1) * text + text * text + bias


def _two_linears_and_newline(c: HfConfig, v: HfConfig, text: int) -> int:
    return _two_linears(c, v, text) + text


def _merged(c: HfConfig, v: HfConfig, text: int) -> int:
    d = v.count("hidden_size")
    return d + (d * c.count("spatial_merge_size", default=2)) ** 2 + _two_linears(c, v, text)


def _gemma3(c: HfConfig, v: HfConfig, text: int) -> int:
    return v.count("hidden_size") * text + v.count("hidden_size")


def _paligemma(c: HfConfig, v: HfConfig, text: int) -> int:
    return (v.count("hidden_size") + 1) * v.count("projection_dim", default=2048)


def _llama4_way(c: HfConfig, v: HfConfig, text: int) -> int:
    return v.count("vision_output_dim") * text


def _within(c: HfConfig, v: HfConfig, text: int) -> int:
    """The tower ends in the text's width itself."""
    return 0


_WAYS: Mapping[str, Callable[[HfConfig, HfConfig, int], int]] = {
    "gemma3": _gemma3,
    "llama4": _llama4_way,
    "llava": _two_linears,
    "llava_next": _two_linears_and_newline,
    "llava_onevision": _two_linears_and_newline,
    "mistral3": _merged,
    "paligemma": _paligemma,
    "qwen2_5_vl": _within,
    "qwen2_vl": _within,
    "qwen3_vl": _within,
    "qwen3_vl_moe": _within,
}
