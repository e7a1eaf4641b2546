"""Shapes of transformers, shared by the workloads that run them."""

from sandtable_workloads.transformer.hf_config import from_hf_config
from sandtable_workloads.transformer.presets import (
    all_presets,
    base_name,
    describe,
    listing,
    model_of,
    preset_for,
    shape_for,
    shape_named,
)
from sandtable_workloads.transformer.shapes import LatentAttention, ModelShape, Moe, StoredWeights

__all__ = [
    "LatentAttention",
    "ModelShape",
    "Moe",
    "StoredWeights",
    "all_presets",
    "base_name",
    "describe",
    "from_hf_config",
    "listing",
    "model_of",
    "preset_for",
    "shape_for",
    "shape_named",
]
