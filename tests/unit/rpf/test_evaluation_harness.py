"""Ranks, returning times and likelihood of held-out events: compiled and batched figures equal those of plain loops."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba", reason="histories are replayed by compiled loops")

from sandtable.errors import NoDevice
from sandtable_workloads.rpf.estimators.item_excitation import IIRPF, XIIRPF
from sandtable_workloads.rpf.estimators.recurrent_factorization import HRPF, SRPF
from sandtable_workloads.rpf.estimators.static_factorization import HPF, PF
from sandtable_workloads.rpf.evaluated import contenders, replayed_state, rivals
from sandtable_workloads.rpf.evaluated.evaluation_harness import as_markdown, evaluate
from sandtable_workloads.rpf.evaluated.held_out_events import HeldOut
from sandtable_workloads.rpf.evaluated.ranking_metrics import Ranking, rank_events, ranks_in
from sandtable_workloads.rpf.evaluated.replayed_state import PairStates
from sandtable_workloads.rpf.evaluated.returning_times import ASKED, NEVER, ReturnErrors, Returns, median_wait
from sandtable_workloads.rpf.evaluated.scored_estimators import ScoredEstimator, of_estimator
from sandtable_workloads.rpf.events.event_table import EventTable

ROOT = Path(__file__).resolve().parents[3]
N_USERS, N_ITEMS, HOURS, DECAY = 12, 15, 60.0, 0.7


@lru_cache(maxsize=1)
def held() -> HeldOut:
    """Random events, some at equal times, the last user and the last item only behind the split."""
    rng = np.random.default_rng(3)
    n = 900
    times = np.sort(np.round(rng.uniform(0, HOURS, n), 2))
    users, items = rng.integers(0, N_USERS - 1, n), rng.integers(0, N_ITEMS - 1, n) ** 2 // (N_ITEMS - 1)
    users[-5:], items[-9:-7] = N_USERS - 1, N_ITEMS - 1
    return HeldOut.of(
        EventTable(*map(np.int32, (users, items)), times, *map(np.arange, (N_USERS, N_ITEMS)), start=0, end=HOURS)
    )


def fitted(model: type[HPF]) -> ScoredEstimator:
    made = model(3, decay=DECAY, max_iter=15, dtype="float64")
    around = np.arange(N_USERS)
    trained = of_estimator(lambda: made).train(HeldOut(held().split, (around, (around + 1) % N_USERS)))
    assert isinstance(trained, ScoredEstimator)
    return trained


# --- ranks ---------------------------------------------------------------------------------------------------------


def test_ranks_count_what_is_greater_and_half_of_what_is_alike() -> None:
    rows = np.array([[3.0, 1.0, 2.0, np.nan], [1.0, 1.0, 1.0, 1.0], [0.0, 5.0, 5.0, 9.0]])
    assert ranks_in(rows, np.array([2, 0, 1])).tolist() == [2.0, 2.5, 2.5]
    with pytest.raises(ValueError, match="no score"):
        ranks_in(rows, np.array([3, 0, 1]))


def test_gain_and_recall_of_known_ranks() -> None:
    ranking = Ranking(np.array([1.0, 3.0, 7.0]))
    assert ranking.ndcg == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert [ranking.recall(k) for k in (1, 3, 6, 7)] == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1])


def test_ranks_do_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = fitted(HRPF)
    at_once = rank_events(trained.scores, held().test.item, N_ITEMS)
    monkeypatch.setattr("sandtable_workloads.rpf.evaluated.ranking_metrics.BATCH_BYTES", 8 * N_ITEMS * 7)
    assert rank_events(trained.scores, held().test.item, N_ITEMS).ranks.tolist() == at_once.ranks.tolist()


# --- what a history leaves ------------------------------------------------------------------------------------------


def plainly(kind: int, user: int, item: int, moment: float) -> float:
    past = [t for u, p, t in zip(*held().all_events, strict=True) if (u, p) == (user, item) and t < moment]
    if kind == replayed_state.COUNT:
        return len(past)
    if kind == replayed_state.RECENCY:
        return 1 / (1 + moment - past[-1]) if past else 0.0
    return sum(DECAY * math.exp(-DECAY * (moment - t)) for t in past)


@pytest.mark.parametrize("kind", [replayed_state.EXCITATION, replayed_state.COUNT, replayed_state.RECENCY])
def test_the_state_at_an_event_is_the_sum_over_what_lies_before_it(kind: int) -> None:
    ring = np.arange(N_USERS + 1)
    states = PairStates(
        history=held().pairs,
        edge_start=ring,
        edge_source=np.roll(ring[:-1], -1),
        edge_weight=np.linspace(1, 2, N_USERS),
        kind=kind,
        decay=DECAY,
    )
    users, moments = held().test.user[:40], held().test.time[:40]
    rows = np.zeros((40, N_ITEMS))
    states.add_to(rows, users, moments)
    expected = [
        [states.edge_weight[u] * plainly(kind, (u + 1) % N_USERS, p, t) for p in range(N_ITEMS)]
        for u, t in zip(users, moments, strict=True)
    ]
    np.testing.assert_allclose(rows, expected, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(states.totals(users, moments), np.sum(expected, 1), rtol=1e-10, atol=1e-14)


# --- estimators ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [PF, HPF, HRPF, SRPF, IIRPF, XIIRPF])
def test_scores_are_the_intensities_that_the_estimator_gives(model: type[HPF]) -> None:
    """In batches along edges, as one by one of an estimator that was told the later events."""
    trained = fitted(model)
    rows = trained.scores(slice(0, 60))
    for row, user, moment in zip(rows, held().test.user, held().test.time, strict=False):
        known, ids = trained._known, np.flatnonzero(trained._known)
        np.testing.assert_allclose(row[known], trained._informed.intensity(user, moment, ids), rtol=1e-9)


def test_users_and_items_that_training_never_saw_have_a_place_in_the_ranks() -> None:
    trained = fitted(HRPF)
    rows = trained.scores(slice(held().test.time.size - 5, held().test.time.size))
    assert (held().test.user[-5:] == N_USERS - 1).all()
    assert (rows > 0).all()
    # the second event of an unseen user sees the first
    assert (rows[-1] > trained.estimator._theta_of(np.array([-1])) @ trained._beta.T - 1e-12).all()
    assert rows[-1].sum() > rows[0].sum()


class OneByOne(HRPF):
    """HRPF that must be asked event by event, as models with other hooks are."""

    def _excitation_items(self, user: int, t: float) -> np.ndarray:
        return super()._excitation_items(user, t)


def test_an_estimator_with_hooks_of_its_own_is_asked_event_by_event() -> None:
    fast, slow = fitted(HRPF), fitted(OneByOne)
    assert fast._along_edges
    assert not slow._along_edges
    seen = held().test.user[:80] < N_USERS - 1
    np.testing.assert_allclose(slow.scores(slice(80))[seen], fast.scores(slice(80))[seen], rtol=1e-9)
    returns = Returns.after_training(held())
    np.testing.assert_allclose(slow.waits(returns), fast.waits(returns), rtol=1e-9)


@pytest.mark.parametrize("ask", ASKED.values())
@pytest.mark.parametrize("model", [HRPF, XIIRPF, SRPF])
def test_waits_are_what_the_estimator_samples(ask: Callable[[HeldOut], Returns], model: type[HPF]) -> None:
    trained, returns = fitted(model), ask(held())
    for user, moment, wait in list(zip(returns.users, returns.asked, trained.waits(returns), strict=True))[:10]:
        asked = trained._informed if moment > held().split.time + 1e-6 else trained.estimator
        sampled = asked.returning_time(user, moment, 2000)
        assert sampled == pytest.approx(wait, rel=0.2)


def test_ids_may_be_of_any_type() -> None:
    named = replace(
        held().split,
        **{
            part: replace(
                getattr(held().split, part),
                user_ids=np.array([f"user {u}" for u in range(N_USERS)]),
                item_ids=np.array([f"item {p}" for p in range(N_ITEMS)]),
            )
            for part in ("earlier", "test")
        },
    )
    (found,) = evaluate([of_estimator(lambda: HRPF(3, decay=DECAY, max_iter=15, dtype="float64"))], HeldOut(named))
    (same,) = evaluate([of_estimator(lambda: HRPF(3, decay=DECAY, max_iter=15, dtype="float64"))], held())
    without = ("train_s",)
    assert {k: v for k, v in found.figures().items() if k not in without} == {
        k: v for k, v in same.figures().items() if k not in without
    }


def test_edges_of_users_that_training_never_saw_are_left_out() -> None:
    edges = np.array([0, N_USERS - 1, 3]), np.array([5, 2, N_USERS - 1])
    known = HeldOut(held().split, edges).known_edges()
    assert known is not None
    assert [ends.tolist() for ends in known] == [[0], [5]]
    assert held().known_edges() is None


def test_the_likelihood_of_held_out_events_is_that_of_their_intensities() -> None:
    trained = fitted(HRPF)
    rows, test, model = trained.scores(slice(None)), held().test, trained.estimator
    users, _, times = held().all_events
    start, end = model.period_[1], times[-1]
    base = model._base_between(trained._user_place, start, end).sum()
    tau = np.where(trained._user_place >= 0, model.tau_[trained._user_place], model.tau_.mean())
    since, until = np.maximum(times, start), end
    grown = np.exp(-DECAY * (since - times)) - np.exp(-DECAY * (until - times))
    expected = np.log(rows[np.arange(test.item.size), test.item]).sum() - base - (tau[users] * grown).sum()
    assert trained.log_likelihood() == pytest.approx(expected / test.item.size, rel=1e-6)


# --- returning times ----------------------------------------------------------------------------------------------


def test_the_median_wait_halves_the_chance_of_no_event() -> None:
    base, excited = np.array([0.1, 1e-9, 2.0, 0.0]), np.array([0.0, 3.0, 1.0, 0.1])

    def expected(hours: np.ndarray) -> np.ndarray:
        return base * hours - excited * np.expm1(-DECAY * hours)

    wait = median_wait(expected, 4)
    np.testing.assert_allclose(np.exp(-expected(wait))[:3], 0.5, rtol=1e-12)
    assert wait[0] == pytest.approx(math.log(2) / 0.1)
    assert wait[3] == pytest.approx(NEVER)  # excitation alone may never bring anybody back


def test_it_is_asked_after_training_at_the_split_and_after_each_event() -> None:
    after, at, each = (ask(held()) for ask in ASKED.values())
    split = held().split.time
    assert N_USERS - 1 not in after.users
    assert after.users.tolist() == at.users.tolist()
    for user, asked, hours, left in zip(after.users, after.asked, after.hours, at.hours, strict=True):
        mine = held().all_events.time[held().all_events.user == user]
        assert asked == np.nextafter(mine[mine <= split].max(), np.inf)
        assert asked + hours == pytest.approx(mine[mine > split].min())
        assert left == pytest.approx(mine[mine > split].min() - split)
    waits = [np.diff(np.unique(held().test.time[held().test.user == user])) for user in range(N_USERS)]
    np.testing.assert_allclose(np.sort(each.hours), np.sort(np.concatenate(waits)))
    found = ReturnErrors(np.array([1.0, 5.0, 2.0]), np.array([1.0, 1.0, 5.0])).figures
    assert found == pytest.approx({"rms": math.sqrt(25 / 3), "mean": 7 / 3, "median": 3.0})


def test_excitation_shortens_the_wait_right_after_an_event() -> None:
    trained, returns = fitted(HRPF), Returns.after_training(held())
    base = trained.estimator._base_between(trained._user_place[returns.users], 0.0, 1.0)
    assert (trained.waits(returns) < np.log(2) / base).all()


# --- simple contenders --------------------------------------------------------------------------------------------


def test_own_counts_and_recency_are_what_they_say() -> None:
    counts, recent = (each().train(held()) for each in (contenders.own_counts, contenders.recency))
    for n in range(0, held().test.time.size, 17):
        user, moment = held().test.user[n], held().test.time[n]
        expected = [plainly(replayed_state.COUNT, user, p, moment) for p in range(N_ITEMS)]
        np.testing.assert_allclose(counts.scores(slice(n, n + 1))[0], expected, atol=1e-8)
        expected = [plainly(replayed_state.RECENCY, user, p, moment) for p in range(N_ITEMS)]
        np.testing.assert_allclose(recent.scores(slice(n, n + 1))[0], expected, atol=1e-8)
    assert counts.log_likelihood() is None
    assert recent.waits(Returns.at_split(held())) is None


def test_popularity_is_a_poisson_process() -> None:
    trained = contenders.popularity().train(held())
    rows, test = trained.scores(slice(None)), held().test
    hours = held().test_hours
    everybody, event = np.unique(test.user, return_index=True)
    assert everybody.size == N_USERS
    mass = rows[event].sum() * hours
    logs = np.log(rows[np.arange(test.item.size), test.item]).sum()
    assert trained.log_likelihood() == pytest.approx((logs - mass) / test.item.size)


def test_the_table_has_a_row_for_each_and_gaps_where_a_model_says_nothing() -> None:
    told: list[str] = []
    named = of_estimator(lambda: HRPF(3, max_iter=5), "HRPF of three")
    found = evaluate([contenders.popularity(), contenders.recency(), named], held(), told.append)
    lines = as_markdown(found).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["popularity", "recency", "HRPF of three"]
    assert lines[3].count("|  |") >= 2
    assert len(told) == 3
    assert found[0].figures().keys() > found[1].figures().keys()


def test_other_packages_are_judged_by_the_same_events() -> None:
    assert {each.name for each in rivals.installed(3)} <= {"hpfrec", "poismf", "implicit ALS", "implicit BPR"}
    for contender in rivals.installed(3):
        trained = contender.train(held())
        rows = trained.scores(slice(None))
        assert rows.shape == (held().test.time.size, N_ITEMS)
        assert np.isfinite(rows).all()


def test_a_package_that_is_missing_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "poismf", None)
    with pytest.raises(NoDevice, match="needs the package 'poismf'"):
        rivals.poismf(3).train(held())


def test_counts_are_given_to_them_as_a_matrix() -> None:
    users, items, counts = held().counts
    assert counts.sum() == held().train.time.size
    matrix = rivals._matrix(held()).toarray()
    assert matrix[users, items].tolist() == counts.tolist()
    for user, item in ((0, 0), (3, 5)):
        assert matrix[user, item] == ((held().train.user == user) & (held().train.item == item)).sum()


def test_the_readme_compares_recommenders_as_it_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals, "installed", lambda n_components: [])
    chapter = (
        (ROOT / "workloads" / "README.md").read_text().split("\n## rpf: how good its recommendations are\n")[1]
    )
    exec(chapter.split("```python\n")[1].split("```")[0], {})
    shown = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()]
    assert shown == ["model", "---", "popularity", "own counts", "recency", "HRPF"]
