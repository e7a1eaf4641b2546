"""Stages of a pipeline: which layers and parameters each holds, and of how many micro-batches it keeps activations.

Numbers may be arrays, one entry per configuration; letters are those of `sandtable_workloads.training.step_demand`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sandtable.demand.operator_shapes import Number
from sandtable_workloads.training.step_numbers import Configuration


@dataclass(frozen=True, slots=True)
class Place:
    """One stage of a pipeline, or the only one: what it holds of the model, and of how many micro-batches.

    Attributes:
        layers: Layers of the stage.
        dense: Those of them that stand before a model's first layer with experts.
        in_flight: Micro-batches whose activations it keeps at once.
        outer_params: Parameters of embedding and head that it holds, before tensor parallelism.
        head: 1 where it computes the loss, else 0.
    """

    layers: Number
    dense: Number
    in_flight: Number
    outer_params: Number
    head: Number

    def with_experts(self, c: Configuration) -> Number:
        """Return how many of the layers have experts: of those behind the dense ones as many as in the whole model."""
        return (self.layers - self.dense) * (c.n_moe_layers / np.maximum(c.n_layers - c.first_dense, 1))


def places(c: Configuration) -> list[Place]:
    """Return the stages of which one holds most: first and last, and that of the first chunk with a layer more.

    Where layers do not divide, chunks in the middle have one more, see `layers_at`. Runs without a pipeline have
    one place; among those with one, it stands for the first stage.
    """
    piped = np.asarray(c.pipeline) > 1
    whole = Place(layers=c.n_layers, dense=c.first_dense, in_flight=1.0, outer_params=c.outer_params, head=1.0)
    if not np.any(piped):
        return [whole]
    embedding, table = _ends(c)
    positions = np.asarray(c.pipeline) * c.chunks
    end = np.asarray(c.pipeline) - 1.0
    longer = np.where(piped, (positions - np.asarray(c.n_layers) % positions) // 2 % c.pipeline, 0.0)
    first, most, last = (_layers_of(c, stage) for stage in (0.0, longer, end))
    return [
        Place(
            layers=np.where(piped, first, whole.layers),
            dense=np.where(piped, np.minimum(c.first_dense, first), whole.dense),
            in_flight=in_flight(c, 0.0),
            outer_params=np.where(piped, embedding, whole.outer_params),
            head=np.where(piped, 0.0, 1.0),
        ),
        Place(
            layers=np.where(piped, most, 0.0),
            dense=np.where(piped & (longer == 0), np.minimum(c.first_dense, most), 0.0),
            in_flight=in_flight(c, longer),
            outer_params=np.where(piped & (longer == 0), embedding, 0.0),
            head=0.0,
        ),
        Place(
            layers=np.where(piped, last, 0.0),
            dense=0.0,
            in_flight=in_flight(c, end),
            outer_params=np.where(piped, table, 0.0),
            head=np.where(piped, 1.0, 0.0),
        ),
    ]


def stage_place(c: Configuration, stage: int) -> Place:
    """Return one stage of one run's pipeline, counted from 0."""
    p, positions = int(c.pipeline), int(c.pipeline * c.chunks)
    parts = [layers_at(k, int(c.n_layers), positions) for k in range(stage, positions, p)]
    embedding, table = (float(size) for size in _ends(c))
    first, last = stage == 0, stage == p - 1
    return Place(
        layers=sum(end - begin for begin, end in parts),
        dense=sum(min(end, int(c.first_dense)) - min(begin, int(c.first_dense)) for begin, end in parts),
        in_flight=in_flight(c, stage),
        outer_params=c.outer_params if p == 1 else embedding * first + table * last,
        head=float(last),
    )


def _layers_of(c: Configuration, stage: Number) -> Number:
    """Return the layers of a stage, counted from 0: those of all its chunks, as `layers_at` has them."""
    p, positions = np.asarray(c.pipeline), np.asarray(c.pipeline) * c.chunks
    more = np.asarray(c.n_layers) % positions
    before = (positions - more) // 2
    longer_chunks = np.ceil((before + more - stage) / p) - np.ceil((before - stage) / p)
    return np.asarray((np.asarray(c.n_layers) - more) / p + longer_chunks, dtype=np.float64)


def _ends(c: Configuration) -> tuple[Number, Number]:
    """Return the parameters that the first stage holds beside its layers, and those of the last one.

    Either both ends have a table of their own, or each has a copy of the tied one.
    """
    table = np.minimum(c.vocabulary * c.d_model, c.outer_params)
    return np.where(np.asarray(c.outer_params) >= 2 * table, c.outer_params - table, c.outer_params), table


def in_flight(c: Configuration, stage: Number) -> Number:
    """Return for how many micro-batches a stage, counted from 0, keeps activations, in units of its layers.

    1F1B: as many as stages follow, itself included. Interleaved, counted in chunks as `schedule.tasks_of` warms up:
    the first stage keeps ``1 + (p - 1) / (p v)`` times as much (arXiv 2205.05198, section 4.2.3).
    """
    p, chunks = np.asarray(c.pipeline, dtype=np.float64), np.asarray(c.chunks, dtype=np.float64)
    follow = p - 1 - stage
    kept = np.where(chunks > 1, (2 * follow + (chunks - 1) * p + 1) / chunks, follow + 1)
    return np.asarray(np.where(p > 1, np.minimum(kept, c.accumulation), 1.0), dtype=np.float64)


def layers_at(position: int, n_layers: int, n_positions: int) -> tuple[int, int]:
    """Return the first layer of one of a pipeline's chunks and the one after its last.

    Where layers do not divide, chunks in the middle have one more: the ends also hold embedding and head.
    """
    least, more = divmod(n_layers, n_positions)
    before = (n_positions - more) // 2
    extra = min(max(position - before, 0), more)
    first = position * least + extra
    return first, first + least + (1 if before <= position < before + more else 0)


@dataclass(frozen=True, slots=True)
class Held:
    """Parameters of one device before data-parallel sharding: those of experts, which fewer devices share, and all."""

    experts: Number
    all: Number

    def split(self, c: Configuration, from_level: int) -> Number:
        """Return the parameters that a device keeps where sharding is at least ``from_level``."""
        shards = np.where(np.asarray(c.sharding) >= from_level, c.replicas, 1.0)
        return (self.all - self.experts) / shards + self.experts / np.maximum(shards / c.expert, 1.0)


def held_by(c: Configuration, place: Place, outer_params: Number) -> Held:
    """Return the parameters of a place's layers, and of as much of embedding and head, on one device."""
    routed = place.with_experts(c)
    of_stage = (place.layers - routed) * c.layer_params + routed * c.moe_layer_params
    experts = routed * c.n_experts * c.n_vectors * c.d_model * c.expert_neurons / c.expert
    return Held(
        experts=experts / c.tensor,
        all=(of_stage + outer_params) / c.tensor,
    )
