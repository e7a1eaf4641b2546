"""Scaling laws: their published values, their limits, money, and fits to made and to real losses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable.errors import CalibrationError, ConfigError, UnknownName
from sandtable_workloads.training.choices import scaling_law
from sandtable_workloads.transformer.presets import shape_named

RECORDED = Path(__file__).parents[1] / "golden" / "slm_local_losses.json"
NAMES = ("chinchilla", "chinchilla_replication", "kaplan")
every_law = pytest.mark.parametrize("name", NAMES)
sizes = st.floats(1e7, 1e12)
amounts = st.floats(1e8, 1e13)


def test_published_values() -> None:
    # arXiv 2203.15556: Chinchilla (70B, 1.4T) and Gopher (280B, 300B) by equation 10
    law = scaling_law.law_named("chinchilla")
    assert law.loss(70e9, 1.4e12) == pytest.approx(1.69 + 406.4 / 70e9**0.34 + 410.7 / 1.4e12**0.28)
    assert law.loss(70e9, 1.4e12) < law.loss(280e9, 300e9)
    # arXiv 2001.08361: with unlimited data the joint law is (N_c / N)^alpha_n
    kaplan = scaling_law.law_named("kaplan")
    assert kaplan.loss(1e9, 1e30) == pytest.approx((6.4e13 / 1e9) ** 0.076, rel=1e-6)


def test_the_replication_spreads_compute_evenly_over_parameters_and_tokens() -> None:
    # arXiv 2404.10102: about 20 tokens per parameter at Chinchilla's compute, and an exponent near one half
    law = scaling_law.law_named("chinchilla_replication")
    compute = 6 * 70e9 * 1.4e12
    n = np.geomspace(1e9, 1e12, 4000)
    best = n[int(np.argmin([law.loss(float(x), compute / 6 / float(x)) for x in n]))]
    assert 10 < compute / 6 / best**2 < 40


@every_law
@given(n=sizes, d=amounts)
def test_more_of_either_lowers_the_loss_towards_the_floor(name: str, n: float, d: float) -> None:
    law = scaling_law.law_named(name)
    assert law.loss(n, d) > law.loss(n, 2 * d) > law.floor(n)
    assert law.loss(n, d) > law.loss(2 * n, d)
    assert law.floor(n) > law.floor(2 * n)


@every_law
@given(n=sizes, d=amounts)
def test_the_gain_is_the_slope_and_tokens_invert_the_loss(name: str, n: float, d: float) -> None:
    law = scaling_law.law_named(name)
    step = 1e-4 * d
    slope = (law.loss(n, d - step) - law.loss(n, d + step)) / (2 * step)
    assert law.gain_per_token(n, d) == pytest.approx(slope, rel=1e-3)
    if law.loss(n, d) - law.floor(n) > 1e-3:
        assert law.tokens_for(n, law.loss(n, d)) == pytest.approx(d, rel=1e-6)


@every_law
def test_a_loss_out_of_reach_is_refused(name: str) -> None:
    law = scaling_law.law_named(name)
    with pytest.raises(ConfigError, match="out of reach"):
        law.tokens_for(1e9, law.floor(1e9))


def test_kaplan_counts_no_embeddings() -> None:
    shape = shape_named("slm_1b")
    assert scaling_law.law_named("chinchilla").params_of(shape) == shape.n_params
    assert scaling_law.law_named("kaplan").params_of(shape) == shape.n_params - 2 * 32000 * 1920


def test_money() -> None:
    law = scaling_law.law_named("chinchilla")
    bought = scaling_law.Bought(law=law, n_params=1e9, tokens_per_usd=3e7)
    usd = bought.usd_to_reach(2.6)
    assert bought.loss_after(usd) == pytest.approx(2.6)
    # equation 1 of arXiv 2410.19456: the next dollar takes off loss per token times tokens per dollar
    gained = bought.loss_after(usd) - bought.loss_after(usd + 1)
    assert bought.loss_per_usd(usd * 3e7) == pytest.approx(gained, rel=0.01)


def test_laws_of_ones_own(tmp_path: Path) -> None:
    law = scaling_law.law_named("kaplan")
    scaling_law.save(law, tmp_path / "own.yaml")
    assert scaling_law.law_named(str(tmp_path / "own.yaml")) == law
    (tmp_path / "bad.yaml").write_text("form: additive\ne: -1\na: 1\nb: 1\nalpha: 1\nbeta: 1\nsource: made up\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml: e: "):
        scaling_law.law_named(str(tmp_path / "bad.yaml"))
    with pytest.raises(UnknownName, match="chinchilla"):
        scaling_law.law_named("chinchila")


# --- fits ---------------------------------------------------------------------------------------------------


def made(n_sizes: int, noise: float) -> list[scaling_law.LossPoint]:
    law = scaling_law.law_named("chinchilla")
    rng = np.random.default_rng(3)
    return [
        scaling_law.LossPoint(float(n), float(d), law.loss(n, d) * math.exp(noise * rng.standard_normal()))
        for n in np.geomspace(5e7, 5e9, n_sizes)
        for d in np.geomspace(1e9, 3e11, 8)
    ]


def test_a_fit_finds_the_law_that_made_the_points() -> None:
    pytest.importorskip("scipy")
    found = scaling_law.fit(made(6, noise=0.002))
    true = scaling_law.law_named("chinchilla")
    assert found.rms_log_error < 0.003
    assert found.n_points == 48
    # beyond the points too: five times the parameters, three times the tokens
    assert found.law.loss(25e9, 1e12) == pytest.approx(true.loss(25e9, 1e12), rel=0.01)


def test_one_size_leaves_out_the_term_of_parameters() -> None:
    pytest.importorskip("scipy")
    found = scaling_law.fit(made(1, noise=0.001))
    assert found.law.a == 0
    assert found.law.e == pytest.approx(scaling_law.law_named("chinchilla").floor(5e7), rel=0.03)


def test_one_wild_point_moves_a_fit_little() -> None:
    pytest.importorskip("scipy")
    points = made(4, noise=0.001)
    wild = [*points[1:], scaling_law.LossPoint(points[0].n_params, points[0].tokens, 3 * points[0].loss)]
    assert scaling_law.fit(wild).law.loss(1e9, 2e10) == pytest.approx(
        scaling_law.fit(points).law.loss(1e9, 2e10), rel=0.01
    )


@pytest.mark.parametrize("bad", [[], [scaling_law.LossPoint(1e6, 1e6, float("nan"))] * 9])
def test_too_little_to_fit_is_said(bad: list[scaling_law.LossPoint]) -> None:
    pytest.importorskip("scipy")
    with pytest.raises(CalibrationError, match="needs at least"):
        scaling_law.fit(bad)


def test_a_loss_curve_becomes_points_that_keep_its_mean() -> None:
    losses = [3.0 + 5.0 * (100 * step) ** -0.4 for step in range(1, 401)]
    points = scaling_law.points_of_run(losses, n_params=1e6, tokens_per_step=100)
    assert len(points) <= 24
    assert [p.tokens for p in points] == sorted(p.tokens for p in points)
    assert points[0].loss == pytest.approx(losses[0])
    assert all(p.loss == pytest.approx(3.0 + 5.0 * p.tokens**-0.4, rel=2e-3) for p in points)
    late = scaling_law.points_of_run(losses[200:], n_params=1e6, tokens_per_step=100, first_step=201)
    assert late[0].tokens > 200 * 100


@pytest.mark.parametrize("index", [0, 1])
def test_real_losses_are_continued(index: int) -> None:
    """Fit to steps 14 to 93 of a recorded run; the last twenty of its 153 are then foretold."""
    pytest.importorskip("scipy")
    run = json.loads(RECORDED.read_text())["runs"][index]
    early = scaling_law.points_of_run(
        run["losses"][10:90],
        n_params=1e6,
        tokens_per_step=run["tokens_per_step"],
        first_step=run["first_step"] + 10,
    )
    law = scaling_law.fit(early).law
    late = float(np.mean(run["losses"][-20:]))
    assert law.loss(1e6, run["tokens_per_step"] * (run["first_step"] + 140)) == pytest.approx(late, rel=0.05)
