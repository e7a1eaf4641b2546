"""Fits by several processes: the parameters of one, and a rank that dies is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sandtable.errors import ConfigError, MeasureError
from sandtable.system import process_ranks
from sandtable_kernels.poisson.event_pairs import EventPairs
from sandtable_workloads.rpf.estimators.fit_checkpoint import FitCheckpoint, read_arrays
from sandtable_workloads.rpf.estimators.recurrent_factorization import HRPF, SRPF
from sandtable_workloads.rpf.estimators.static_factorization import HPF
from sandtable_workloads.rpf.scaled import rank_fit, rank_job

pytest.importorskip("torch")
OPTIONS: dict[str, Any] = {"n_components": 3, "max_iter": 15, "tol": 1e-30, "dtype": "float64", "n_threads": 1}


def some_events(n: int = 500, n_users: int = 14) -> list[Any]:
    rng = np.random.default_rng(4)
    return [rng.integers(0, n_users, n), rng.integers(0, 8, n), np.sort(rng.uniform(0, 50, n))]


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


@pytest.mark.parametrize("hierarchical", [True, False])
def test_ranks_share_a_graph_whose_edges_lead_from_any_to_any(hierarchical: bool) -> None:
    rng = np.random.default_rng(6)
    edges = np.arange(14)[rng.integers(0, 14, (2, 60))]
    options = OPTIONS | {"hierarchical": hierarchical, "decay": 0.5}
    one = SRPF(**options).fit(some_events(), tuple(edges))
    shared = SRPF(**options, n_ranks=3).fit(some_events(), tuple(edges))
    near(shared, one, ("theta_", "beta_", "tau_", "edge_tau_"))
    for name, rows in one.state_.items():
        np.testing.assert_allclose(shared.state_[name].group_rate, rows.group_rate, rtol=1e-8)
        assert shared.state_[name].terms == pytest.approx(rows.terms, rel=1e-9)


def test_ranks_go_on_from_a_checkpoint_of_one_and_stop_alike(tmp_path: Path) -> None:
    kept = tmp_path / "fit.npz"
    options = OPTIONS | {"tol": 1e-4, "max_iter": 200}
    HPF(**options | {"max_iter": 5}).fit(some_events(), checkpoint=kept)
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
    options = OPTIONS | {"max_iter": 300}

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


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_shards_hold_all_events_and_nearly_the_same_work() -> None:
    user, item, time = some_events(3000, 100)
    pairs = EventPairs.of(user, item, time, 100, 8)
    bounds = rank_fit.shards(pairs.chunks(3))
    parts = [rank_job.users_between(pairs, *map(int, bounds[i : i + 2])) for i in range(3)]
    assert sum(part.n_events for part in parts) == 3000
    assert max(part.n_events for part in parts) < 1.1 * 1000
    whole = EventPairs.of(
        *(np.concatenate(each) for each in zip(*map(columns, parts, bounds), strict=True)), 100, 8
    )
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
    with pytest.raises(ConfigError, match="leave out `validation`"):
        HRPF(**OPTIONS, n_ranks=2).fit(events, validation=events)
    with pytest.raises(ConfigError, match="n_ranks must be a whole number of at least 1"):
        HRPF(**OPTIONS, n_ranks=0).fit(events)
