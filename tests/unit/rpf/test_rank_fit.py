"""Fits by several processes: the parameters of one, and a rank that dies is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sandtable.errors import ConfigError, MeasureError
from sandtable.system import process_ranks
from sandtable_kernels.poisson.event_pairs import EventPairs
from sandtable_workloads.rpf.estimators.dynamic_factorization import DRPF, DSRPF
from sandtable_workloads.rpf.estimators.fit_checkpoint import FitCheckpoint, read_arrays
from sandtable_workloads.rpf.estimators.item_excitation import IIRPF, XIIRPF
from sandtable_workloads.rpf.estimators.recurrent_factorization import HRPF, SRPF
from sandtable_workloads.rpf.estimators.static_factorization import HPF
from sandtable_workloads.rpf.scaled import event_shards, rank_fit

pytest.importorskip("torch")
OPTIONS: dict[str, Any] = {"n_components": 3, "max_iter": 15, "tol": 1e-30, "dtype": "float64", "n_threads": 1}


def some_events(n: int = 500, n_users: int = 14) -> list[Any]:
    rng = np.random.default_rng(4)
    return [rng.integers(0, n_users, n), rng.integers(0, 8, n), np.sort(rng.uniform(0, 50, n))]


def usual(**more: Any) -> dict[str, Any]:
    return OPTIONS | more


def near(one: HPF, other: HPF, names: tuple[str, ...] = ("theta_", "beta_", "tau_")) -> None:
    for name in names:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(one.elbo_, other.elbo_, rtol=1e-10)
    assert (one.n_iter_, one.converged_) == (other.n_iter_, other.converged_)


def test_ranks_find_what_one_finds() -> None:
    done: list[int] = []
    one = HRPF(**OPTIONS).fit(some_events())
    shared = HRPF(**OPTIONS, n_ranks=3).fit(some_events(), progress=lambda i: done.append(i.number))
    near(shared, one)
    assert done == [*range(1, 16)]
    assert shared.recommend(3, 50.0, 2)[0][0] == one.recommend(3, 50.0, 2)[0][0]


# --- every model, by three ranks that fit one after the other --------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A model to fit, with edges or not; ``goes_on``: after five iterations that were done and kept before."""

    model: type[HPF]
    options: Any = ()
    social: bool = False
    goes_on: bool = False

    def estimator(self, **more: Any) -> HPF:
        return self.model(**usual(decay=0.5) | dict(self.options) | more)

    def begun(self, **more: Any) -> HPF:
        return self.estimator(**more).begin(some_dates(0, 500, 50), self.edges())

    def fitted(self, **more: Any) -> HPF:
        return self.estimator().fit(some_dates(0, 500, 50), self.edges(), **more)

    def edges(self) -> Any:
        return tuple(np.random.default_rng(6).integers(0, 14, (2, 60))) if self.social else None


SHIFTS = np.random.default_rng(2).uniform(0.1, 1, (4, 3))
SHELF = {"clusters": dict(zip(np.arange(8), np.arange(8) // 3, strict=True))}
CASES = {
    "hpf": Case(HPF),
    "srpf": Case(SRPF, social=True),
    "srpf with rates given": Case(SRPF, {"hierarchical": False}, social=True),
    "drpf": Case(DRPF, {"feature_period": 24.0, "user_features": SHIFTS, "item_features": SHIFTS[:, :2]}),
    "dsrpf": Case(DSRPF, social=True, goes_on=True),
    "iirpf": Case(IIRPF, goes_on=True),
    "iirpf with edges": Case(IIRPF, social=True),
    "xiirpf": Case(XIIRPF, SHELF),
    "xiirpf with edges": Case(
        XIIRPF, {"clusters": 3, "distances": np.ones((3, 3)) + SHIFTS[1:]}, True, goes_on=True
    ),
}
ALL_JOBS = """
import sys
from pathlib import Path
from sandtable_workloads.rpf.scaled.rank_workers import RankFit, dist
rank, folders = int(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
dist.init_process_group("gloo", init_method=folders[0].joinpath("meet").as_uri(), rank=rank, world_size=3)
for folder in folders:
    RankFit(folder, rank).run()
"""


def some_dates(seed: int, n: int, hour: float) -> dict[str, Any]:
    """Events of the 50 hours from ``hour`` on; those after the fit's are also of new users and items."""
    rng, later = np.random.default_rng(seed), 3 if seed else 0
    hours = np.datetime64("2024-03-05T17:20:00", "ms") + (3.6e6 * np.sort(rng.uniform(hour, hour + 50, n))).astype(
        "timedelta64[ms]"
    )
    return {"user": rng.integers(0, 14 + later, n), "item": rng.integers(0, 8 + later, n), "time": hours}


def validation() -> dict[str, Any]:
    return some_dates(1, 60, 100)


@pytest.fixture(scope="module")
def by_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HPF]:
    folder, found = tmp_path_factory.mktemp("ranks"), {}
    for name, case in CASES.items():
        kept = FitCheckpoint(path=folder / name / "kept.npz", every_iterations=2) if case.goes_on else None
        if kept is not None:
            case.estimator(max_iter=5).fit(
                some_dates(0, 500, 50), case.edges(), validation=validation(), checkpoint=kept
            )
        found[name] = case.begun(n_ranks=3)
        rank_fit.write_ranks(found[name], folder / name, validation=validation(), checkpoint=kept)
    command = [sys.executable, "-c", ALL_JOBS]
    ranks = [subprocess.Popen([*command, str(rank), *(str(folder / name) for name in CASES)]) for rank in range(3)]
    assert [rank.wait(120) for rank in ranks] == [0, 0, 0]
    for name, model in found.items():
        rank_fit.take_ranks(model, folder / name)
    return found


@pytest.mark.parametrize("name", CASES)
def test_ranks_find_what_one_finds_and_stop_by_the_same_likelihood(name: str, by_ranks: dict[str, HPF]) -> None:
    shared, one = by_ranks[name], CASES[name].fitted(validation=validation())
    published = [name for name in ("theta_", "beta_", "tau_", "edge_tau_", "phi_", "pi_") if hasattr(one, name)]
    near(shared, one, tuple(published))
    assert len(one.held_out_) >= 2
    np.testing.assert_allclose(shared.held_out_, one.held_out_, rtol=1e-9)
    assert shared.score(validation()) == pytest.approx(one.held_out_[-1], rel=1e-9)
    for rows, others in zip(one.state_.values(), shared.state_.values(), strict=True):
        np.testing.assert_allclose(others.group_rate, rows.group_rate, rtol=1e-8)
        assert others.terms == pytest.approx(rows.terms, rel=1e-9)


# --- how ranks are run -----------------------------------------------------------------------------------------------


def test_ranks_go_on_from_a_checkpoint_of_one_and_stop_alike(tmp_path: Path) -> None:
    kept = tmp_path / "fit.npz"
    options = usual(tol=1e-4, max_iter=200)
    HPF(**usual(tol=1e-4, max_iter=5)).fit(some_events(), checkpoint=kept)
    shared = HPF(**options, n_ranks=2).fit(some_events(), checkpoint=kept)
    one = HPF(**options).fit(some_events())
    near(shared, one, ("theta_", "beta_"))
    assert shared.converged_
    assert read_arrays(kept)[0]["history"]["elbo"] == shared.elbo_


def test_a_rank_that_dies_is_told_and_the_checkpoint_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[process_ranks.Rank] = []
    start = rank_fit._start
    monkeypatch.setattr(rank_fit, "_start", lambda *given: started.append(start(*given)) or started[-1])
    checkpoint = FitCheckpoint(path=tmp_path / "fit.npz", every_iterations=1)
    options = usual(max_iter=300)

    def ended(done: Any) -> None:
        if done.number == 3:  # told before its checkpoint is written, and after those of the two before it
            os.kill(started[1].process.pid, signal.SIGKILL)

    with pytest.raises(MeasureError, match=r"rank 1 of 2 was ended by SIGKILL; the same fit goes on"):
        HRPF(**options, n_ranks=2).fit(some_events(), checkpoint=checkpoint, progress=ended)
    assert all(rank.process.poll() is not None for rank in started)
    assert 2 <= len(read_arrays(checkpoint.path)[0]["history"]["elbo"]) < 300
    near(HRPF(**options, n_ranks=2).fit(some_events(), checkpoint=checkpoint), HRPF(**options).fit(some_events()))


def test_machines_meet_by_address_each_with_a_copy_of_the_folder(tmp_path: Path) -> None:
    shared = HRPF(**OPTIONS, n_ranks=2)
    folders = [tmp_path / "here", tmp_path / "there"]
    rank_fit.write_ranks(shared.begin(some_events()), folders[0])
    subprocess.run(["cp", "-r", *map(str, folders)], check=True)
    command = [sys.executable, "-m", rank_fit.WORKER]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen([*command, str(folder)], env=os.environ | place | {"RANK": str(rank)})
        for rank, folder in enumerate(folders)
    ]
    assert [rank.wait(60) for rank in ranks] == [0, 0]
    rank_fit.take_ranks(shared, folders[0])
    near(shared, HRPF(**OPTIONS).fit(some_events()))
    with pytest.raises(ConfigError, match="cannot be read"):
        rank_fit.take_ranks(shared, folders[1])


def test_ranks_of_a_machine_share_its_cores_unless_threads_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    free = HRPF(**usual(n_threads=None, n_ranks=4)).begin(some_events())
    assert [rank_fit.write_ranks(free, tmp_path / "free").threads(n_here) for n_here in (1, 4, 40)] == [12, 3, 1]
    given = HRPF(**usual(n_threads=5, n_ranks=4)).begin(some_events())
    assert rank_fit.write_ranks(given, tmp_path / "given").threads(4) == 5


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_shards_hold_all_events_and_nearly_the_same_work() -> None:
    user, item, time = some_events(3000, 100)
    pairs = EventPairs.of(user, item, time, 100, 8)
    bounds = rank_fit.shards(pairs.chunks(3))
    parts = [event_shards.users_between(pairs, *map(int, bounds[i : i + 2])) for i in range(3)]
    assert sum(part.n_events for part in parts) == 3000
    assert max(part.n_events for part in parts) < 1.1 * 1000
    users, items, times = map(np.concatenate, zip(*map(columns, parts, bounds), strict=True))
    whole = EventPairs.of(users, items, times, 100, 8)
    np.testing.assert_array_equal(whole.item, pairs.item)
    np.testing.assert_array_equal(whole.time, pairs.time)
    mask = (user >= bounds[1]) & (user < bounds[2])
    alone = EventPairs.of(user[mask] - bounds[1], item[mask], time[mask], int(bounds[2] - bounds[1]), 8)
    for name in ("user_start", "item", "pair_user", "event_start", "time", "item_start", "by_item"):
        np.testing.assert_array_equal(getattr(parts[1], name), getattr(alone, name))


def columns(part: EventPairs, first: int) -> tuple[Any, Any, Any]:
    return part.event_user + first, part.event_item, part.time


@pytest.mark.parametrize("bounds", [[0, 0, 0, 5], [0, 5, 5, 5], [0, 2, 2, 5]])
def test_no_shard_is_without_a_user(bounds: list[int]) -> None:
    found = rank_fit.shards(np.array(bounds))
    assert (found[0], found[-1]) == (0, 5)
    assert (np.diff(found) > 0).all()


def test_what_ranks_cannot_do_is_said() -> None:
    events = some_events()
    with pytest.raises(ConfigError, match="15 ranks share out 14 users"):
        HRPF(**OPTIONS, n_ranks=15).fit(events)
    with pytest.raises(ConfigError, match="before the fit's end"):
        HRPF(**OPTIONS, n_ranks=2).fit(events, validation=events)
    with pytest.raises(ConfigError, match="n_ranks must be a whole number of at least 1"):
        HRPF(**OPTIONS, n_ranks=0).fit(events)
