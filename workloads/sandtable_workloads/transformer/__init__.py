"""Shapes of transformers, shared by the workloads that run them."""

from sandtable_workloads.transformer.hf_config import from_hf_config
from sandtable_workloads.transformer.presets import all_presets, base_name, preset_for, shape_for, shape_named
from sandtable_workloads.transformer.shapes import LatentAttention, ModelShape, Moe

__all__ = [
    "LatentAttention",
    "ModelShape",
    "Moe",
    "all_presets",
    "base_name",
    "from_hf_config",
    "preset_for",
    "shape_for",
    "shape_named",
]
