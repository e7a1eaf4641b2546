"""How far repeats of timings lie apart, and how far a machine as a whole wanders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sandtable.calibration.fit import least_squares, left_out
from sandtable.calibration.timing import Timing


def repeat_spread(timings: Sequence[Timing]) -> float | None:
    """Return how far passes lie from their point's median: half the 90 % interval, as a fraction."""
    deviations: list[float] = []
    weights: list[float] = []
    for timing in timings:
        medians = np.log([np.median(part) for part in timing.passes])
        if len(medians) > 1:
            # a small sample's deviations are too small by this much
            scale = np.sqrt(len(medians) / (len(medians) - 1))
            deviations.extend(scale * np.abs(medians - medians.mean()))
            weights.extend([float(least_squares.weight_of(timing.seconds))] * len(medians))
    if not deviations:
        return None
    # robust against single disturbed points: the 90th percentile of the absolute deviation
    return float(np.expm1(left_out.weighted_percentile(np.array(deviations), np.array(weights), 90)))


def drift(timings: Sequence[Timing]) -> float | None:
    """Return how far the machine wanders from one pass to another: half the 90 % interval, as a fraction.

    A pass takes a minute or so. What all its points share, a run some time later will meet again, in another state;
    what single points do for themselves averages out over the calls of a run. The first is the median of a pass over
    all points, less what scatter alone would make of it; the interval is Student's, for one more draw. Repeats of
    single points contain the drift, so that it is no more than their spread, however few passes there were.
    """
    passes = min((len(t.passes) for t in timings), default=0)
    if passes < 2:
        return None
    logs = np.log([[np.median(part) for part in t.passes[:passes]] for t in timings])
    off = logs - logs.mean(axis=1, keepdims=True)
    weights = np.asarray(least_squares.weight_of(np.array([t.seconds for t in timings])))
    shared = np.array([left_out.weighted_percentile(column, weights, 50) for column in off.T])
    # the median absolute deviation is 0.6745 of a normal one's sigma; a row of n deviations has n - 1 of its own
    scatter = left_out.weighted_percentile(np.abs(off - shared).ravel(), np.repeat(weights, passes), 50) / 0.6745
    scatter *= np.sqrt(passes / (passes - 1))
    n = weights.sum() ** 2 / (weights**2).sum()
    # a median varies pi / 2 times as much as a mean
    variance = max(0.0, float(shared.var(ddof=1)) - np.pi / 2 * scatter**2 / n)
    half = float(np.expm1(left_out.student_95(passes - 1) * np.sqrt(variance * (1 + 1 / passes))))
    return min(half, repeat_spread(timings) or 0.0)
