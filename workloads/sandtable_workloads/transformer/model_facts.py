"""What people want to know of a model before they name it: its counts and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sandtable_workloads.transformer import presets


@lru_cache(maxsize=1)
def model_names() -> tuple[str, ...]:
    """Return the names of all presets."""
    return tuple(item.name for item in presets.listing())


def model_facts(text: str) -> Mapping[str, Any]:
    """Return the counts and sizes of a model, however people name it.

    Raises:
        UnknownName: with the nearest presets.
        ConfigError: a file that is no configuration of a model.
    """
    shape = presets.model_of(text)
    return {
        "title": shape.title or shape.name,
        "parameters": shape.n_params,
        "active": None if shape.is_dense else shape.n_active_params,
        "layers": shape.n_layers,
        "width": shape.d_model,
        "neurons": shape.n_neurons,
        "heads": shape.n_heads,
        "key/value heads": shape.n_kv_heads,
        "vocabulary": shape.vocabulary,
    }
