"""Where the error of a prediction comes from, and what the errors of two predictions have in common.

A time is a sum over ops, and to first order its relative error is that of its ops by their shares: d ln T = sum of
w_i e_i (the delta method; Oehlert, "A Note on the Delta Method", The American Statistician 46, 1992). Of the ratio of
two times it is the difference of their weights that counts, source by source, so that what both rest on cancels as
far as both rest on it. That is what drawing both with common random numbers comes to where times are linear in the
errors (Glasserman and Yao, "Some Guidelines and Guarantees for Common Random Numbers", Management Science 38, 1992),
without the noise of the draws.

The error of an op has three parts. What its law misses at its own shape is the same for equal shapes, and the more
alike the nearer two shapes are. Where constants are not those of the device itself, what they miss there is common to
all shapes of the law. And how far a part of the machine has drifted since it was measured is common to all its ops::

    cov(e_i, e_j) = own_i own_j ALIKE_PER_DOUBLING ** |x_i - x_j|   [of one law, operator and element type]
                  + common_i common_j                               [of one law]
                  + drift_i drift_j                                 [of one part of the machine]

with x the binary logarithms of a shape's columns, so that their distance counts doublings. Errors of different laws,
and of different parts of a machine, are independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sandtable.demand.op import Op
from sandtable.demand.operator import FloatArray
from sandtable.hardware import Evidence
from sandtable.model.extrapolation import columns_of, kind_of
from sandtable.results import NORMAL_95

# Of points left out of 91 fits to published timings of GPUs and links: the correlation of their errors falls from 0.48
# at a quarter of a doubling to 0.28 at 1.25, 0.13 at 2.5 and none beyond 3, which is 0.57 times 0.55 per doubling. The
# rest of the 0.57 is the scatter of a timed point: of a shape timed again, that much of the error comes again.
ALIKE_PER_DOUBLING = 0.55
AGAIN_FRAC = 0.57
# Of 82 such fits, each device predicted with what was fitted to the others of its software: the square of the mean miss
# over the mean square; and half the 90 % interval of what scatters about it, 0.19 in the median, and comes again.
COMMON_FRAC = 0.3
NORMAL_75 = 0.6744897501960817  # 75th percentile of the standard normal distribution: half of all lies within
MOST_OWN = NORMAL_95 * 0.19 * AGAIN_FRAC**0.5
# no law is trusted to better than this at a shape that was not measured
LEAST_OWN = 0.03
# shapes this close, in doublings, count as one
GRAIN = 0.125
# of one law, before places are taken together
MOST_PLACES = 512

Place = tuple[float, ...]


class Miss(NamedTuple):
    """By how much something lies below and above its prediction, in logarithms: half a 90 % interval each."""

    below: float
    above: float


class Source(NamedTuple):
    """Where the error of an op's time comes from: its law, what that misses, and the op's place among its like.

    ``own`` is what belongs to the shape, ``common`` to all shapes of the law, ``drift`` to the part of the machine.
    ``kind`` is operator and element type, ``place`` the logarithms of the shape, see `place_of`; ``by_bandwidth`` says
    that moving its bytes takes a processor longer than its arithmetic.
    """

    resource: str
    on: str
    law: str
    kind: str
    own: Miss
    common: Miss
    drift: float
    place: Place
    by_bandwidth: bool = False

    @classmethod
    def of(
        cls,
        op: Op,
        law: str,
        miss: Miss,
        drift: float,
        evidence: Evidence | None,
        *,
        beyond: float = 0.0,
        by_bandwidth: bool = False,
    ) -> Source:
        """Return the source of an op's error, from what its law misses and its part of the machine drifts.

        ``evidence`` is that of a fit to the very device, ``beyond`` what its interval has in addition at this shape.
        """
        if evidence is not None:
            typical = _typical_miss(evidence)
            own, common = Miss(min(miss.below, typical), min(miss.above, typical)), Miss(0.0, 0.0)
        else:
            own = Miss(*(min(end * (1 - COMMON_FRAC) ** 0.5, MOST_OWN) for end in miss))
            common = Miss(*(math.sqrt(end**2 - part**2) for end, part in zip(miss, own, strict=True)))
        own = Miss(*(math.hypot(end, beyond) for end in own))
        return cls(op.resource, op.on, law, kind_of(op), own, common, drift, place_of(op), by_bandwidth)


def _typical_miss(evidence: Evidence) -> float:
    """Return half the 90 % interval of what a law misses at a shape, in logarithms: of the median of points left out.

    The 5th and 95th percentile, which a lone prediction gets, are those few points that lie at the ends of a grid: left
    out, the law has to reach beyond all others. What is predicted lies within, where it hangs between neighbours. And
    what of a point's miss is the scatter of its timing is no error of a time that is the mean over many calls.
    """
    found, again = evidence.held_out_median_abs_error_frac, evidence.again_frac
    typical = math.log1p(evidence.median_abs_error_frac if found is None else found) * NORMAL_95 / NORMAL_75
    return max(LEAST_OWN, typical * math.sqrt(1.0 if again is None else again))


# by how much, in relative terms, a quantity follows the error of each source, by the digest of the part it belongs to
Weights = Mapping[tuple[str, Source], float]


def place_of(op: Op) -> Place:
    """Return where a demand lies among those of its operator: binary logarithms of its columns, in grains."""
    logs = (math.log2(max(1.0, float(column))) for column in columns_of(op).values())
    return tuple(round(log / GRAIN) * GRAIN for log in logs)


def less(after: Weights, before: Weights, *, times: float = 1.0, times_before: float = 1.0) -> dict[Any, float]:
    """Return the weights of a difference, ``times`` the one less ``times_before`` the other."""
    keys = dict.fromkeys((*after, *before))
    return {key: times * after.get(key, 0.0) - times_before * before.get(key, 0.0) for key in keys}


def miss_of(weights: Weights) -> Miss:
    """Return by how much a quantity with these weights may lie below and above its prediction.

    Exchanging the signs of all weights exchanges the two, exactly.
    """
    alike: dict[Any, list[tuple[Source, float]]] = {}
    shared: dict[Any, list[tuple[Miss, float]]] = {}
    for (part, source), weight in weights.items():
        if weight:
            alike.setdefault((part, source.resource, source.on, source.law, source.kind), []).append(
                (source, weight)
            )
            shared.setdefault((part, source.resource, source.on, source.law), []).append((source.common, weight))
            shared.setdefault(part, []).append((Miss(source.drift, source.drift), weight))
    own = [_scattered(members) for members in alike.values()]
    sums = [np.sum([_signed(*pair) for pair in members], axis=0) for members in shared.values()]
    squares = np.sum([*own, *(total**2 for total in sums)], axis=0) if own else (0.0, 0.0)
    return Miss(*(math.sqrt(max(0.0, float(square))) for square in squares))


def _signed(miss: Miss, weight: float) -> tuple[float, float]:
    """Return what an error takes off and adds: where less of an op is more, its upper end is the lower one."""
    return (weight * miss.below, weight * miss.above) if weight > 0 else (weight * miss.above, weight * miss.below)


def _scattered(members: list[tuple[Source, float]]) -> FloatArray:
    """Return the squares of what errors of shapes, the more alike the nearer they are, take off and add."""
    places = np.array([source.place for source, _ in members])
    signed = np.array([_signed(source.own, weight) for source, weight in members])
    grain = GRAIN
    while len(places) > MOST_PLACES:
        # shapes of a process that makes new ones all the time: those close by count as one
        grain *= 2
        places, which = np.unique(np.round(places / grain) * grain, axis=0, return_inverse=True)
        merged = np.zeros((len(places), 2))
        np.add.at(merged, which.reshape(-1), signed)
        signed = merged
    apart = np.sqrt(((places[:, None] - places[None]) ** 2).sum(axis=-1))
    return np.asarray(np.einsum("ie,ij,je->e", signed, ALIKE_PER_DOUBLING**apart, signed))


def drift_of(weights: Weights) -> float:
    """Return by how much a quantity wanders with its machine from one run to another: half a 90 % interval."""
    parts: dict[str, float] = {}
    for (part, source), weight in weights.items():
        parts[part] = parts.get(part, 0.0) + weight * source.drift
    return math.hypot(*parts.values())
