"""Shapes of transformers, shared by the workloads that run them."""

from sandtable_workloads.transformer.hf_config import from_hf_config
from sandtable_workloads.transformer.presets import base_name, preset_for, presets, shape_named
from sandtable_workloads.transformer.shapes import LatentAttention, ModelShape, Moe

__all__ = [
    "LatentAttention",
    "ModelShape",
    "Moe",
    "base_name",
    "from_hf_config",
    "preset_for",
    "presets",
    "shape_named",
]
