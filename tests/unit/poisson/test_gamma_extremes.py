"""The bound's terms of very small and very large factors, of which products are taken before their logs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import digamma, gammaln

from sandtable_kernels.poisson.gamma_rows import GammaPrior, GammaRows


@pytest.mark.parametrize("prior_shape", [1e-8, 1e-5, 1.0, 30.0])
@pytest.mark.parametrize(("counts", "rates"), [((0.0, 1e-3), (1e-9, 1e-3)), ((0.0, 1e9), (1e-3, 1e9))])
def test_terms_are_those_of_scipy(prior_shape, counts, rates):
    rng = np.random.default_rng(0)
    shape = (5, 70)
    rows = GammaRows.start(GammaPrior(prior_shape, rate=0.5), np.full(shape, 1.0))
    more, beyond = (low + (high - low) * rng.random(shape) ** 4 for low, high in (counts, rates))
    rows.maximise_rates(more, beyond)
    a, b = prior_shape + more, beyond + 0.5
    log_mean = digamma(a) - np.log(b)
    priors = prior_shape * np.log(0.5) - gammaln(prior_shape) + (prior_shape - 1) * log_mean - 0.5 * a / b
    entropies = a - np.log(b) + gammaln(a) + (1 - a) * digamma(a)
    # entropies of large shapes are differences of large numbers, of scipy's too
    scale = np.abs(a * digamma(a)).sum()
    assert rows.terms == pytest.approx((priors + entropies).sum(), rel=1e-9, abs=1e-11 * a.size + 1e-13 * scale)
    np.testing.assert_allclose(rows.geometric, np.exp(log_mean), rtol=1e-10, atol=1e-300)
