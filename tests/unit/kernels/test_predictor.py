from __future__ import annotations

import numpy as np
import pytest

from sandtable.errors import ConfigError
from sandtable_kernels.files.dtypes import encode
from sandtable_kernels.operations.predictor import LowRankPredictor, fit_low_rank, parameter_bytes, parameter_count
from sandtable_kernels.support import seeded

pytest.importorskip("numba", reason="the fast path needs numba")


def test_opt_predictors_take_the_published_share():
    # LLM in a flash, appendix C.1: 1.25 % of OPT 6.7B, which is what rank 128 in all 32 layers gives
    assert 32 * parameter_count(128, 4096, 16384) / 6.66e9 == pytest.approx(0.0125, rel=0.02)
    assert parameter_bytes(128, 4096, 16384, "float16") == 2 * 128 * (4096 + 16384)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_scores_and_threshold(dtype, threshold):
    a, b, x = seeded((4, 20), 0), seeded((50, 4), 1), seeded((20,), 2)
    predictor = LowRankPredictor(reduce=encode(a, dtype), expand=encode(b, dtype), dtype=dtype, threshold=threshold)
    scores = predictor.scores(x)
    assert np.allclose(scores, 1 / (1 + np.exp(-(b @ (a @ x)))), atol=2e-5 if dtype == "float32" else 0.05)
    assert predictor.predict(x).tolist() == np.flatnonzero(scores > threshold).tolist()
    assert (predictor.rank, predictor.n_parameters) == (4, 4 * 70)


def test_a_trained_predictor_finds_the_active_neurons():
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((200, 6)) @ rng.standard_normal((6, 48))
    x = rng.standard_normal((3000, 48)).astype(np.float32)
    x[:, 0] = 3  # without a mean in the inputs, a map without bias calls half of all neurons active
    hidden[:, 0] = 0
    scores = x @ hidden.T
    active = scores > np.quantile(scores, 0.9)
    predictor = fit_low_rank(x[:2500], active[:2500], 8, n_epochs=12, seed=1)
    found = np.zeros((500, 200), bool)
    for token in range(500):
        found[token, predictor.predict(x[2500 + token])] = True
    truth = active[2500:]
    recall, predicted = found[truth].mean(), found.mean()
    assert recall > 0.9  # about what the paper's predictors reach
    assert predicted < 3 * truth.mean()  # and they over-predict about three times
    again = fit_low_rank(x[:2500], active[:2500], 8, n_epochs=1, seed=1)
    twice = fit_low_rank(x[:2500], active[:2500], 8, n_epochs=1, seed=1)
    assert np.array_equal(again.expand, twice.expand)


def test_bad_predictors_are_refused():
    good = {"reduce": seeded((4, 20), 0), "expand": seeded((50, 4), 1)}
    with pytest.raises(ConfigError, match="do not share a rank"):
        LowRankPredictor(**good | {"expand": seeded((50, 5), 1)})
    with pytest.raises(ConfigError, match="threshold"):
        LowRankPredictor(**good, threshold=1.0)
    with pytest.raises(ConfigError, match="3 inputs but 2 rows"):
        fit_low_rank(np.zeros((3, 4), np.float32), np.zeros((2, 5), bool), 2)
