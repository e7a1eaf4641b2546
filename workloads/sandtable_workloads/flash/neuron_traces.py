"""Which trace a scenario uses, and the predictor's ranks, from the published sparsity of the model."""

from __future__ import annotations

import numpy as np

from sandtable.errors import ConfigError
from sandtable_kernels.neurons import sparsity
from sandtable_kernels.neurons.sparsity import resample
from sandtable_kernels.neurons.traces import RecordedTrace, SyntheticTrace, Trace
from sandtable_workloads.flash.flash_parameters import FlashInference
from sandtable_workloads.flash.known_sparsity import has_known_sparsity, sparsity_of
from sandtable_workloads.transformer.shapes import ModelShape

PREDICTED_WIDTH = 4096  # of OPT-6.7B


def predictor_ranks(shape: ModelShape) -> tuple[int, ...]:
    """Return the predictor's rank in each layer, stretched over the depth of ``shape``; never below 1.

    A model without published ranks has those of OPT-6.7B, in proportion to its width.
    """
    known = has_known_sparsity(shape)
    scale = 1.0 if known else shape.d_model / PREDICTED_WIDTH
    published = sparsity_of(shape) if known else sparsity.preset("opt_6_7b")
    ranks = [scale * rank for rank in resample(published.predictor_rank, shape.n_layers)]
    # stretched ranks are rounded to a multiple of 32, as the published ones are
    return tuple(max(32, 32 * round(rank / 32)) for rank in ranks)


def active_fractions(parameters: FlashInference) -> tuple[float, ...]:
    """Return the predicted share of neurons in each layer; ``active`` scales them to that mean.

    Raises:
        UnknownName: the model has no published sparsity, and none is given.
    """
    if parameters.active_frac is not None and not has_known_sparsity(parameters.shape):
        return (parameters.active_frac,) * parameters.shape.n_layers
    shares = np.array(resample(sparsity_of(parameters.shape).predicted_frac, parameters.shape.n_layers))
    if parameters.active_frac is not None:
        shares = np.minimum(shares * parameters.active_frac / shares.mean(), 1.0)
    return tuple(float(share) for share in shares)


def trace_of(parameters: FlashInference, seed: int) -> Trace:
    """Return the trace that both plan and execution follow.

    Raises:
        ConfigError: a recorded trace of another geometry, or with too few tokens.
    """
    shape = parameters.shape
    if parameters.trace is None:
        growth = sparsity_of(shape).growth if parameters.reuse is None else parameters.reuse
        return SyntheticTrace(
            shape.n_layers, shape.n_neurons, active_fractions(parameters), growth=growth, seed=seed
        )
    trace = RecordedTrace.load(parameters.trace)
    needed = parameters.cold_tokens + parameters.tokens
    if (trace.n_layers, trace.n_neurons) != (shape.n_layers, shape.n_neurons):
        raise ConfigError(
            f"recorded with {trace.n_layers} layers of {trace.n_neurons} neurons, but {shape.name} has "
            f"{shape.n_layers} of {shape.n_neurons}",
            file=parameters.trace,
        )
    if trace.n_tokens < needed:
        raise ConfigError(f"holds {trace.n_tokens} tokens, and {needed} are asked for", file=parameters.trace)
    return trace
