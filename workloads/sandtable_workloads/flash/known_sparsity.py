"""Which models have a published activation sparsity: those with a ReLU, or that were given one and trained again."""

from __future__ import annotations

from sandtable_kernels.neurons.sparsity import SparsityPreset, preset, presets
from sandtable_workloads.transformer.presets import base_name
from sandtable_workloads.transformer.shapes import ModelShape

# shapes without published sparsity of their own borrow that of a model of the same kind
_BORROWED = {"opt_mini": "opt_6_7b", "llama_2_7b_relu": "llama_2_7b"}


def sparsity_of(shape: ModelShape) -> SparsityPreset:
    """Return the published sparsity of a model, found by the shape's name without its depth.

    Raises:
        UnknownName: it has none.
    """
    return preset(_key(shape))


def has_known_sparsity(shape: ModelShape) -> bool:
    """Whether the model's sparsity is published."""
    return _key(shape) in presets()


def _key(shape: ModelShape) -> str:
    base = base_name(shape.name)
    return _BORROWED.get(base, base)
