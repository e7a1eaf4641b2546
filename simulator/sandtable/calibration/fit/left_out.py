"""How far a prediction may miss, by what was left out of fits: folds over shapes, and intervals that few folds allow.

What a fit misses on its own points says how many constants it has, not how well it predicts. So residuals come from
shapes that were left out, or for constants that devices share, from devices that were left out.

Their scatter differs from fit to fit, and few folds say little of it. The squares of the standard deviations are taken
as scaled inverse chi-squared with `DEGREES` degrees of freedom about the operator's usual one, which joins in as that
many folds would, and the interval of what comes next is that of Student's t (Smyth, "Linear models and empirical Bayes
methods", Statistical Applications in Genetics and Molecular Biology 3, 2004, section 3). Without any fold the usual
scatter is all there is; a law that meets a few points exactly promises little more.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from sandtable.errors import missing_extra
from sandtable.results import NORMAL_95

FloatArray = npt.NDArray[np.float64]

# Of the standard deviations of 92 devices left out of fits to published timings: the logarithms of their squares vary
# by 0.5 to 1.3 within an operator, which is the trigamma function of half of 2.4 to 4.7 degrees of freedom.
DEGREES = 3
# parts into which shapes are divided, each left out in turn
N_FOLDS = 5
# no law is trusted to better than this, however many points lie on it
FLOOR = 0.03


def folds(keys: Sequence[Hashable], n_folds: int = N_FOLDS) -> npt.NDArray[np.intp]:
    """Return the fold of each point: equal keys, such as a shape timed twice, are left out together."""
    unique = list(dict.fromkeys(keys))
    n_folds = min(n_folds, len(unique))
    order = np.random.default_rng(0).permutation(len(unique))
    fold_of = {unique[index]: place % n_folds for place, index in enumerate(order)}
    return np.array([fold_of[key] for key in keys], dtype=np.intp)


def scatter_of(residuals: FloatArray, weights: FloatArray | None = None) -> float:
    """Return the standard deviation of a normal distribution about zero that holds nine tenths of the residuals."""
    weights = np.ones(len(residuals)) if weights is None else weights
    return weighted_percentile(np.abs(residuals), weights, 90) / NORMAL_95


def half_width(scatter: float, n_folds: float, usual: float) -> float:
    """Return half the 90 % interval of what a prediction misses, in logarithms.

    Args:
        scatter: Root mean square over the folds of their `scatter_of`; not read where there are none.
        n_folds: How many shapes or devices were left out, each on its own or with others.
        usual: The operator's usual one, see `sandtable.demand.operator.Scatter`.
    """
    degrees = DEGREES + n_folds
    square = (DEGREES * usual**2 + (n_folds * scatter**2 if n_folds else 0.0)) / degrees
    return max(FLOOR, student_95(degrees) * float(np.sqrt(square)))


def usual(scatters: Sequence[float]) -> float:
    """Return the scatter about which those of several fits lie: of the mean of their logarithms, as Smyth does."""
    try:
        from scipy.special import digamma
    except ImportError:
        raise missing_extra("scipy", "run") from None
    mean = float(np.mean(2 * np.log(scatters)))
    return float(np.exp((mean + digamma(DEGREES / 2) - np.log(DEGREES / 2)) / 2))


def weighted_percentile(values: FloatArray, weights: FloatArray, percent: float) -> float:
    """Return the percentile of values that count by ``weights``."""
    order = np.argsort(values)
    share = np.cumsum(weights[order])
    position = (share - 0.5 * weights[order]) / share[-1]
    return float(np.interp(percent / 100, position, values[order]))


def student_95(degrees: float) -> float:
    """Return the 95th percentile of Student's t with that many degrees of freedom."""
    try:
        from scipy.stats import t
    except ImportError:
        raise missing_extra("scipy", "run") from None
    return float(t.ppf(0.95, degrees))
