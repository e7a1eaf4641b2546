"""Shapes and sparsity against the published figures that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sandtable import units
from sandtable.errors import UnknownName
from sandtable_workloads.flash.flash_parameters import FlashInference, Sizes
from sandtable_workloads.flash.token_demand import replay
from sandtable_workloads.transformer.presets import shape_named
from sandtable_workloads.transformer.shapes import ModelShape

# sparse decode is rehearsed on these
PUBLISHED = ("opt_6_7b", "falcon_7b", "phi_2", "llama_2_7b")


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_sum_of_their_parts(name: str) -> None:
    shape = shape_named(name)
    layer = (shape.with_layers(2).n_params - shape.with_layers(1).n_params) - (
        shape.attention_params + shape.ffn_params
    )
    # what a layer holds besides its matrices is small, and the same in every layer
    assert 0 < layer < 0.002 * shape.attention_params
    assert shape.n_params == shape.with_layers(1).n_params + (shape.n_layers - 1) * (
        shape.attention_params + shape.ffn_params + layer
    )


def test_most_of_opt_is_feed_forward() -> None:
    shape = shape_named("opt_6_7b")
    assert shape.n_layers * shape.ffn_params / shape.n_params == pytest.approx(0.645, abs=0.001)


def test_a_neuron_of_opt_is_a_record_of_sixteen_kib() -> None:
    """Row-column bundling in float16: two vectors of 4096 (section 3.2 doubles a chunk of 8 KiB)."""
    bundled = Sizes.of(FlashInference(model="opt_6_7b", rung="bundling"))
    apart = Sizes.of(FlashInference(model="opt_6_7b", rung="window"))
    assert (bundled.record_bytes, bundled.records_per_neuron) == (16384, 1)
    assert (apart.record_bytes, apart.records_per_neuron) == (8192, 2)
    assert bundled.store_bytes == apart.store_bytes == 32 * 16384 * 16384


def test_a_shallower_model_keeps_its_layers() -> None:
    full, short = shape_named("opt_6_7b"), shape_named("opt_6_7b_8l")
    assert short.n_layers == 8
    assert short.ffn_params == full.ffn_params
    assert short.d_model == full.d_model
    assert shape_named("opt_6_7b_32l") == full


@pytest.mark.parametrize("name", ["opt_6_7b_33l", "opt_6_7b_0l", "opt_6_7b_xl", "gpt_9", "opt_6_7b_8l_2l"])
def test_a_shape_that_does_not_exist(name: str) -> None:
    with pytest.raises(UnknownName, match="no model named"):
        shape_named(name)


def test_keys_and_values_by_hand() -> None:
    # two tensors, 32 layers, 10 tokens, 32 heads of 128, four bytes
    assert shape_named("opt_6_7b").kv_bytes(10, "float32") == 2 * 32 * 10 * 32 * 128 * 4
    # one key/value head
    assert shape_named("falcon_7b").kv_bytes(10, "float16") == 2 * 32 * 10 * 64 * 2


def test_heads_must_divide() -> None:
    with pytest.raises(ValueError, match="n_kv_heads 3 must divide n_heads 16"):
        ModelShape.model_validate(shape_named("opt_mini").model_dump() | {"n_kv_heads": 3})


@pytest.mark.parametrize("name", ["mixtral_8x7b", "deepseek_v3", "gpt_oss_20b", "bloom_560m", "opt_350m"])
def test_sparse_decode_is_for_plain_dense_models(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has experts, latent attention, attention sinks or an embedding"):
        FlashInference(model=name, rung="bundling", weights="float16")
    assert FlashInference(model=name).rung == "auto"


def test_a_dense_model_without_published_sparsity_is_named_as_such() -> None:
    with pytest.raises(ValueError, match="has no published sparsity: set active and reuse of its version"):
        FlashInference(model="llama_3_8b_2l", rung="bundling")
    given = FlashInference(model="llama_3_8b_2l", active_frac=0.1, reuse=0.4, tokens=4, cold_tokens=2)
    assert given.rung == "bundling"
    demands = [layer for token in replay(given, 1).tokens for layer in token]
    assert sum(d.n_active for d in demands) / len(demands) / 14336 == pytest.approx(0.1, abs=0.01)


# --- sparsity ----------------------------------------------------------------------------------------------


def steady(**changes: Any) -> tuple[float, float]:
    """Return the shares of FFN neurons kept in memory and newly read per token, in the steady state."""
    values = {"model": "opt_6_7b", "window": 5, "tokens": 12, "cold_tokens": 8} | changes
    parameters = FlashInference.model_validate(values, context=units.AT_EDGE)
    demands = np.array([[(d.n_used, d.n_missing) for d in token] for token in replay(parameters, 1).tokens])
    kept, new = demands[parameters.cold_tokens :].mean(axis=(0, 1)) / parameters.shape.n_neurons
    return float(kept), float(new)


def test_opt_keeps_a_quarter_and_reads_a_fortieth() -> None:
    """Section 4.1: 24 % of the FFN is kept with a window of 5, and about 2.4 % is new in every token."""
    kept, new = steady()
    assert kept == pytest.approx(0.24, abs=0.01)
    assert new == pytest.approx(0.024, abs=0.001)


def test_a_wider_window_keeps_more_and_reads_less() -> None:
    found = [steady(window=window) for window in (1, 2, 4, 6)]
    kept, new = zip(*found, strict=True)
    assert list(kept) == sorted(kept)
    assert list(new) == sorted(new, reverse=True)


def test_a_budget_bounds_what_is_kept() -> None:
    free, _ = steady(model="opt_6_7b_2l")
    row = Sizes.of(FlashInference(model="opt_6_7b_2l")).row_bytes
    rows = int(0.8 * free * 16384)
    kept, new = steady(model="opt_6_7b_2l", memory_budget=f"{2 * rows * row} B")
    assert kept * 16384 <= rows
    assert new > steady(model="opt_6_7b_2l")[1]


def test_the_replay_depends_on_its_seed_alone() -> None:
    parameters = FlashInference(model="opt_6_7b_1l", tokens=6, cold_tokens=2)
    assert replay(parameters, 3).tokens == replay(parameters, 3).tokens
    assert replay(parameters, 3).tokens != replay(parameters, 4).tokens
