"""What a step is made of, whoever times it: units of layers with what they compute and what they send.

The plan for the engine and the closed form read the same `StepParts`; the one makes ops of them, the other seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from sandtable.demand.operator_shapes import CollectiveShape, Number
from sandtable_workloads.training import step_demand
from sandtable_workloads.training.step_demand import Demand, LayerKind, Software
from sandtable_workloads.training.step_numbers import Configuration

FULL, GRAD_OP, ZERO_1 = 3, 2, 1
# seconds of the device and of the host for a part of a section
Both = tuple[Number, Number]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWork:
    """What one layer of a kind computes and sends within itself, forward and backward, and how many there are."""

    kind: LayerKind
    count: Number
    forward: list[Demand]
    backward: list[Demand]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepParts:
    """All demands of a step on one device.

    ``gather`` and ``reduce`` are the collectives over the data-parallel group for one layer's weights and gradients,
    ``gather_outer`` and ``reduce_outer`` those for embedding, head and last norm; ``gather_all`` brings the weights
    back after an optimiser that is sharded; ``send`` passes activations to the next pipeline stage.
    """

    layers: list[LayerWork]
    embedding_forward: list[Demand]
    embedding_backward: list[Demand]
    head_forward: list[Demand]
    head_backward: list[Demand]
    between: list[Demand]
    optimizer: list[Demand]
    gather: Demand
    reduce: Demand
    gather_outer: Demand
    reduce_outer: Demand
    gather_all: Demand
    send: Demand
    layers_per_reduce: Number


def layer_kinds(c: Configuration) -> dict[LayerKind, Number]:
    """Return how many layers of each kind there are; windows and experts are spread over each other evenly."""
    experts, windowed = c.n_moe_layers / c.n_layers, c.n_windowed_layers / c.n_layers
    shares = {
        LayerKind(experts=e, windowed=w): (experts if e else 1 - experts) * (windowed if w else 1 - windowed)
        for e in (False, True)
        for w in (False, True)
    }
    return {kind: c.n_layers * share for kind, share in shares.items() if np.any(np.asarray(share) > 0)}


def parts_of(c: Configuration, software: Software) -> StepParts:
    """Return the demands of a step on one device."""
    layers = [
        LayerWork(
            kind=kind,
            count=count,
            forward=step_demand.layer_forward(c, kind, software),
            backward=step_demand.layer_recompute(c, kind, software) + step_demand.layer_backward(c, kind, software),
        )
        for kind, count in layer_kinds(c).items()
    ]
    per_layer = step_demand.stage_params(c) * c.pipeline / c.n_layers / c.tensor
    outer = c.outer_params / c.tensor
    per_reduce, n_buckets = buckets(c, per_layer)
    return StepParts(
        layers=layers,
        embedding_forward=step_demand.embedding_forward(c, software),
        embedding_backward=step_demand.embedding_backward(c, software),
        head_forward=step_demand.head_forward(c, software),
        head_backward=step_demand.head_backward(c, software),
        between=_between(c, software),
        optimizer=[*step_demand.optimizer(c, software), *_muon(c)],
        gather=_data("weights all-gather", c, "all_gather", per_layer * c.item_bytes),
        reduce=_reduce("gradients", c, per_layer * per_reduce, n_buckets),
        gather_outer=_data("weights all-gather", c, "all_gather", outer * c.item_bytes),
        reduce_outer=_reduce(
            "gradients", c, outer, np.maximum(1.0, np.ceil(outer * c.reduce_bytes / c.bucket_bytes))
        ),
        gather_all=_data("weights all-gather", c, "all_gather", step_demand.held_params(c) * c.item_bytes),
        send=_send(c),
        layers_per_reduce=per_reduce,
    )


def exposed_s(parts: Iterable[Both]) -> Number:
    """Return what a section takes beyond its device's work, if all of it is waited for.

    The host starts with the section and issues its parts in order; the device begins a part when the one before is done
    and the host has come to it, and ends it no sooner than the host.
    """
    issued: Number = 0.0
    done: Number = 0.0
    working: Number = 0.0
    for device, host in parts:
        begun = np.maximum(done, issued)
        issued, working = issued + host, working + device
        done = np.maximum(begun + device, issued)
    return done - working


def buckets(c: Configuration, per_layer: Number) -> tuple[Number, Number]:
    """Return how many layers are reduced together, and in how many calls one such group is.

    Buckets are filled by size (Li et al., "PyTorch Distributed", arXiv 2006.15704, section 3.2.3); where weights or
    gradients are sharded, each layer is a unit of its own.
    """
    n_bytes = per_layer * c.reduce_bytes
    sharded = np.asarray(c.sharding) >= GRAD_OP
    most = c.n_layers / c.pipeline
    together = np.where(sharded, 1.0, np.clip(np.floor(c.bucket_bytes / n_bytes), 1.0, most))
    calls = np.where(sharded, 1.0, np.maximum(1.0, np.ceil(n_bytes / c.bucket_bytes)))
    return _like(c, together), _like(c, calls)


def _like(c: Configuration, value: np.ndarray) -> Number:
    """Return a float where the configuration is one of scalars."""
    return value if isinstance(c.n_layers, np.ndarray) else float(value)


def _data(name: str, c: Configuration, operator: str, n_bytes: Number) -> Demand:
    return step_demand.collective(name, c, operator, n_bytes, c.replicas, c.tensor)


def _reduce(name: str, c: Configuration, params: Number, n_calls: Number) -> Demand:
    """Gradients are summed in place where every device keeps them, and scattered where each keeps its share."""
    n_bytes = params * c.reduce_bytes / n_calls
    kind = "all_reduce" if c.sharding_kind == "ddp" else "reduce_scatter"
    return replace(_data(f"{name} {kind.replace('_', '-')}", c, kind, n_bytes), times=n_calls)


def _send(c: Configuration) -> Demand:
    """Each rank of a tensor-parallel group sends its share, and the other side gathers it within the machine.

    arXiv 2104.04473, section 4.1: the scatter/gather optimisation.
    """
    n_bytes = c.tokens * c.d_model * c.item_bytes / c.tensor
    neighbours = c.per_machine >= 2 * c.tensor * c.context * c.data
    local = np.where(neighbours, 2.0, 1.0)
    ranks = np.where(np.asarray(c.pipeline) > 1, 2.0, 1.0)  # one stage sends to nobody
    shape = CollectiveShape(n_bytes, _like(c, ranks), _like(c, np.minimum(local, ranks)))
    return Demand(name="activations", operator="send_recv", shape=shape, dtype=c.dtype)


def _muon(c: Configuration) -> list[Demand]:
    """Return what Muon does beyond moving states: matrices brought together, made orthogonal and spread again."""
    if c.optimizer != "muon":
        return []
    found = [
        product
        for kind, count in layer_kinds(c).items()
        for weights in step_demand.layer_products(c, kind)
        for product in step_demand.orthogonalised(c, weights, count)
    ]
    return [*found, step_demand.whole_matrices(c)]


def _between(c: Configuration, software: Software) -> list[Demand]:
    """Return what a further micro-batch costs on top of itself: adding its gradients to those before.

    Sharded gradients are a small share, and a pipeline's products add to the gradients in place.
    """
    whole = np.asarray(c.sharding) < GRAD_OP
    n_params = _like(c, np.where(whole & (np.asarray(c.pipeline) == 1), step_demand.held_params(c), 0.0))
    return [software.memory_bound("gradient sum", 3 * n_params * c.reduce_bytes, c)]
