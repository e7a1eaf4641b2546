"""Compiled maximisation of Gamma factors, many in the lanes of a vector. Importing this module needs numba.

digamma and the log of Gamma come from their asymptotic series at ``y = x + 6``, exact to 1e-11 there, and six steps of
their recurrence. What a lower bound needs is a sum of logs; the log of a product of a few numbers stands for it, so
that the only transcendental function left for each factor is one exponential, written out so that it vectorises.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from sandtable_kernels.compiled.events.intensity_loops import in_order_rows, in_order_sum
from sandtable_kernels.compiled.events.row_vectors import float_of_bits
from sandtable_kernels.compiled.memory_loops import inlined, lean, parallel

_HALF_LOG_TAU = 0.5 * np.log(2 * np.pi)
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 0.693147180369123816490, 1.90821492927058770002e-10
# Factors whose product is taken before its log: the product of as many shapes or rates stays within float64, of many
# unless a shape may be below the least.
_MANY, _FEW, _LEAST = 32, 8, 1e-6


@inlined
def exponential(x: Any) -> Any:
    """Return exp(x) for x from -700 to 700 within 1e-13 of itself."""
    x = max(x, -700.0)
    n = np.floor(x * _LOG2_E + 0.5)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW  # Taylor's series to r^11: |r| < 0.35
    s = 1 / 362880.0 + r * (1 / 3628800.0 + r * (1 / 39916800.0))
    s = 1 / 120.0 + r * (1 / 720.0 + r * (1 / 5040.0 + r * (1 / 40320.0 + r * s)))
    s = 1.0 + r * (1.0 + r * (0.5 + r * (1 / 6.0 + r * (1 / 24.0 + r * s))))
    return s * float_of_bits(np.int64(np.int32(n) + np.int32(1023)) << np.int64(52))


@inlined
def gamma_parts(x: Any) -> Any:
    """Return of a shape x: y; the rest of ``digamma(x) - ln y``; of the entropy; and a product whose log it lacks.

    With ``q = rest``: digamma(x) = ln y + q, and
    ``x + ln Gamma(x) - x digamma(x) = -ln y / 2 - ln product + entropy``.
    """
    y = x + 6.0
    i = 1.0 / y
    j = i * i
    # Bernoulli numbers of the two series
    psi = j * (
        1 / 12.0 - j * (1 / 120.0 - j * (1 / 252.0 - j * (1 / 240.0 - j * (1 / 132.0 - j * (691 / 32760.0)))))
    )
    log_gamma = i * (1 / 12.0 - j * (1 / 360.0 - j * (1 / 1260.0 - j * (1 / 1680.0 - j * (1 / 1188.0)))))
    tail = 0.5 * i + psi
    # 1 / x + ... + 1 / (x + 5) as one fraction, in pairs that are alike: x (x + 5), (x + 1)(x + 4), (x + 2)(x + 3)
    middle = x * (x + 5.0)
    a, b, c = middle, middle + 4.0, middle + 6.0
    product = a * b * c
    steps = (2.0 * x + 5.0) * (b * c + a * c + a * b) / product
    shrunk = product * (j * j * j)
    entropy = x - y + _HALF_LOG_TAU + log_gamma + x * (tail + steps)
    return y, -tail - steps, entropy, shrunk


@lean
def _some(prior_shape: Any, shapes: Any, rates: Any, means: Any, geometric: Any) -> Any:
    """Write means of some factors from shapes and rates; return sums of means and of terms, and three products."""
    total, terms, ys, shrinks, divisors = 0.0, 0.0, 1.0, 1.0, 1.0
    for k in range(shapes.shape[0]):
        shape, rate = np.float64(shapes[k]), rates[k]
        y, rest, entropy, shrunk = gamma_parts(shape)
        inverse = 1.0 / rate
        mean = shape * inverse
        means[k] = mean
        geometric[k] = y * exponential(rest) * inverse
        total += mean
        terms += entropy + prior_shape * rest
        ys *= y
        shrinks *= shrunk
        divisors *= rate
    return total, terms, ys, shrinks, divisors


@lean
def _rows(
    first: Any,
    last: Any,
    prior_shape: Any,
    prior_rate: Any,
    counts: Any,
    rates: Any,
    factors: Any,
    totals: Any,
    rate_of: Any,
) -> Any:
    shapes, means, geometric = factors
    n = shapes.shape[1]
    step = _MANY if prior_shape > _LEAST else _FEW
    terms, logs = 0.0, 0.0
    y_product, shrunk_product, rate_product = 1.0, 1.0, 1.0
    for r in range(first, last):
        prior, row_total, in_turn = prior_rate[r], 0.0, r % rates[0].shape[0]
        for k in range(n):
            shapes[r, k] = prior_shape + counts[r, k]
            if len(rates) == 2:
                rate_of[k] = rates[0][r] * rates[1][k] + prior
            else:
                rate_of[k] = rates[0][in_turn, k] + prior
        for low in range(0, n, step):
            at = slice(low, min(low + step, n))
            # a loop of its own over few arrays: LLVM checks only so many for overlaps before it gives up vectors
            total, more, ys, shrinks, divisors = _some(
                prior_shape, shapes[r, at], rate_of[at], means[r, at], geometric[r, at]
            )
            row_total += total
            terms += more
            if _far(ys) or _far(shrinks) or _far(divisors):
                logs += _log_terms(prior_shape, ys, shrinks, divisors)
                continue
            y_product *= ys
            shrunk_product *= shrinks
            rate_product *= divisors
            if _far(y_product) or _far(shrunk_product) or _far(rate_product):
                logs += _log_terms(prior_shape, y_product, shrunk_product, rate_product)
                y_product, shrunk_product, rate_product = 1.0, 1.0, 1.0
        totals[r] = row_total
    return terms + logs + _log_terms(prior_shape, y_product, shrunk_product, rate_product)


@inlined
def _far(x: Any) -> Any:
    return x > 1e150 or x < 1e-150


@inlined
def _log_terms(prior_shape: Any, y: Any, shrunk: Any, rate: Any) -> Any:
    return (prior_shape - 0.5) * np.log(y) - np.log(shrunk) - prior_shape * np.log(rate)


@parallel
def maximise(
    chunks: Any, prior_shape: Any, prior_rate: Any, counts: Any, rates: Any, factors: Any, totals: Any
) -> Any:
    """Write q of factors at its optimum; return the sum of their entropies and of their priors' shares in it.

    That is the sum over factors of ``shape + ln Gamma(shape) - shape digamma(shape) + prior_shape E[ln x]``.

    Args:
        chunks: int64 [C + 1], boundaries of rows; each has a partial sum of its own.
        prior_shape: Shape of the prior.
        prior_rate: float64 [R], a row's expected rate of the prior.
        counts: [R, K], expected counts.
        rates: What rates have beyond the prior's: two arrays [R] and [K], to be multiplied, or one [M, K], whose rows
            are taken in turn, again and again.
        factors: ``shape``, ``mean`` and ``geometric`` mean, each [R, K], which are written.
        totals: float64 [R], receives the sum of a row's means.
    """
    n = chunks.shape[0] - 1
    terms = np.empty(n)
    for c in prange(n):
        rate_of = np.empty(factors[0].shape[1])
        terms[c] = _rows(chunks[c], chunks[c + 1], prior_shape, prior_rate, counts, rates, factors, totals, rate_of)
    return in_order_sum(terms)


@lean
def _weighted_rows(first: Any, last: Any, weights: Any, values: Any, total: Any) -> None:
    for k in range(total.shape[0]):
        total[k] = 0.0
    for r in range(first, last):
        for k in range(total.shape[0]):
            total[k] += weights[r] * values[r, k]


@parallel
def weighted_sums(chunks: Any, weights: Any, values: Any) -> Any:
    """Return float64 [K], the sum over rows of ``weights`` [R] times ``values`` [R, K], chunk after chunk."""
    n = chunks.shape[0] - 1
    parts = np.empty((n, values.shape[1]))
    for c in prange(n):
        _weighted_rows(chunks[c], chunks[c + 1], weights, values, parts[c])
    return in_order_rows(parts)
