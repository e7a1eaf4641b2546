"""Checkpoints of a fit: whole or not there, of the same fit or refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sandtable.errors import ConfigError, InUse
from sandtable_workloads.rpf.estimators.fit_checkpoint import (
    FitCheckpoint,
    FitIdentity,
    digest,
    read_arrays,
    write_arrays,
)
from sandtable_workloads.rpf.estimators.recurrent_factorization import HRPF

ARRAYS = {"theta": np.arange(6.0).reshape(2, 3), "empty": np.empty((0, 3), np.float32), "n": np.array(3)}


def identity(data: str = "d", model: str = "HRPF", **parameters: Any) -> FitIdentity:
    return FitIdentity(model=model, data=data, parameters={"n_components": 3, "max_iter": 10, **parameters})


def kept(path: Path, **options: Any) -> FitCheckpoint:
    checkpoint = FitCheckpoint(path=path, **options)
    with checkpoint.held():
        checkpoint.keep(identity().as_json(), {"elbo": [-1.0, 0.1]}, ARRAYS)
    return checkpoint


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    checkpoint = kept(tmp_path / "fit.npz")
    found = checkpoint.resume(identity(max_iter=99, tol=1e-9))  # how long to fit may change
    assert found is not None
    assert found[0] == {"elbo": [-1.0, 0.1]}
    for name, array in ARRAYS.items():
        assert found[1][name].dtype == array.dtype
        np.testing.assert_array_equal(found[1][name], array)
    assert os.listdir(tmp_path) == ["fit.npz"]


def test_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert FitCheckpoint(path=tmp_path / "fit.npz").resume(identity()) is None
    assert FitCheckpoint.of(None) is None
    assert FitCheckpoint.of("fit.npz") == FitCheckpoint(path=Path("fit.npz"))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (identity(data="e"), "other events"),
        (identity(model="SRPF"), "is of a HRPF, and this is a fit of SRPF"),
        (identity(n_components=4), r"n_components=3, now 4"),
        (identity(decay=1.0), r"decay=None, now 1.0"),
    ],
)
def test_of_another_fit_is_refused(tmp_path: Path, other: FitIdentity, words: str) -> None:
    with pytest.raises(ConfigError, match=f"fit.npz: .*{words}.*remove it"):
        kept(tmp_path / "fit.npz").resume(other)


@pytest.mark.parametrize("n_bytes", [0, 40, -40])
def test_cut_off_is_refused(tmp_path: Path, n_bytes: int) -> None:
    checkpoint = kept(tmp_path / "fit.npz")
    data = checkpoint.path.read_bytes()
    checkpoint.path.write_bytes(data[:n_bytes])
    with pytest.raises(ConfigError, match="damaged"):
        checkpoint.resume(identity())


def test_a_changed_bit_is_refused(tmp_path: Path) -> None:
    checkpoint = kept(tmp_path / "fit.npz")
    data = bytearray(checkpoint.path.read_bytes())
    place = data.index(ARRAYS["theta"].tobytes()) + 11
    data[place] ^= 1
    checkpoint.path.write_bytes(data)
    with pytest.raises(ConfigError, match="damaged"):
        checkpoint.resume(identity())


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "fit.npz"
    np.savez(path, a=np.arange(3))
    with pytest.raises(ConfigError, match="was not written by a fit"):
        FitCheckpoint(path=path).resume(identity())
    write_arrays(path, {"kind": "model"}, ARRAYS)
    with pytest.raises(ConfigError, match="no checkpoint of a fit"):
        FitCheckpoint(path=path).resume(identity())
    with pytest.raises(ConfigError, match="cannot be read"):
        read_arrays(tmp_path / "none.npz")


def test_written_when_due(tmp_path: Path) -> None:
    by_count = FitCheckpoint(path=tmp_path / "a.npz", every_iterations=3)
    with by_count.held():
        assert [by_count.due(n) for n in range(1, 8)] == [False, False, True, False, False, True, False]
    always = FitCheckpoint(path=tmp_path / "b.npz", every_s=0.0)
    with always.held():
        assert always.due(1)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="every_iterations is 0"):
        FitCheckpoint(path=Path("a"), every_iterations=0)
    with pytest.raises(ConfigError, match="every_s is nan"):
        FitCheckpoint(path=Path("a"), every_s=float("nan"))


def test_one_fit_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "fit.npz"
    code = (
        "import sys; from pathlib import Path\n"
        "from sandtable_workloads.rpf.estimators.fit_checkpoint import FitCheckpoint\n"
        "with FitCheckpoint(path=Path(sys.argv[1])).held(): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InUse, match=f"process {other.pid}"), FitCheckpoint(path=path).held():
            pass
        other.kill()
    (tmp_path / "fit.npz.0123abcd.partial").write_bytes(b"of one that was killed")
    with FitCheckpoint(path=path).held():
        assert os.listdir(tmp_path) == ["fit.npz.lock"]


def test_a_write_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    checkpoint = kept(tmp_path / "fit.npz")
    before = checkpoint.path.read_bytes()
    with pytest.raises(ValueError, match="allow_pickle"):
        write_arrays(checkpoint.path, {}, {"a": np.array([object()])})
    assert checkpoint.path.read_bytes() == before
    assert os.listdir(tmp_path) == ["fit.npz"]


def test_digest_tells_apart() -> None:
    a = np.arange(4, dtype=np.int64)
    assert digest(a, a) == digest(a.copy(), a[::1])
    found = {digest(a), digest(a[::-1]), digest(a.reshape(2, 2)), digest(a.view(np.uint64)), digest(a[:0])}
    assert len(found) == 5
    assert digest(a[::2]) == digest(a[::2].copy())


# --- fits ----------------------------------------------------------------------------------------------------

FIT = """
import os, signal, sys
from pathlib import Path
import numpy as np
from sandtable_workloads.rpf.estimators.fit_checkpoint import FitCheckpoint
from sandtable_workloads.rpf.estimators.recurrent_factorization import HRPF

def ended(iteration):
    if iteration.number == 7:
        os.kill(os.getpid(), signal.SIGKILL)

events = [np.load(sys.argv[1])[name] for name in ("user", "item", "time")]
HRPF(3, max_iter=12, tol=1e-30).fit(events, checkpoint=FitCheckpoint(path=Path(sys.argv[2]), every_iterations=2),
    progress=ended)
"""


def some_events(n: int = 400) -> list[Any]:
    rng = np.random.default_rng(4)
    return [rng.integers(0, 12, n), rng.integers(0, 8, n), np.sort(rng.uniform(0, 50, n))]


def same(one: HRPF, other: HRPF) -> None:
    for name in ("theta_", "beta_", "tau_"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.elbo_, one.n_iter_, one.converged_) == (other.elbo_, other.n_iter_, other.converged_)


def test_killed_and_gone_on_with_is_as_never_killed(tmp_path: Path) -> None:
    data, checkpoint = tmp_path / "events.npz", tmp_path / "fit.npz"
    events = some_events()
    np.savez(data, **dict(zip(("user", "item", "time"), events, strict=True)))
    ended = subprocess.run([sys.executable, "-c", FIT, str(data), str(checkpoint)], check=False)
    assert ended.returncode == -9
    assert len(read_arrays(checkpoint)[0]["history"]["elbo"]) == 6
    done: list[int] = []
    resumed = HRPF(3, max_iter=12, tol=1e-30, n_threads=1)
    resumed.fit(events, checkpoint=checkpoint, progress=lambda i: done.append(i.number))
    assert done == [*range(7, 13)]
    same(resumed, HRPF(3, max_iter=12, tol=1e-30).fit(events))


def test_a_fit_that_had_converged_is_not_gone_on_with(tmp_path: Path) -> None:
    events, later = some_events(), [*some_events(40)[:2], np.linspace(50, 60, 40)]
    for name, scored in (("plain", None), ("scored", later)):
        fit = HRPF(3, tol=1e-3)
        first = fit.fit(events, checkpoint=tmp_path / name, validation=scored)
        assert first.converged_
        again = HRPF(3, tol=1e-3).fit(
            events,
            checkpoint=tmp_path / name,
            validation=scored,
            progress=lambda _: pytest.fail("an iteration"),
        )
        same(first, again)
    with pytest.raises(ConfigError, match="other hyperparameters"):
        HRPF(4, tol=1e-3).fit(events, checkpoint=tmp_path / "plain")
    with pytest.raises(ConfigError, match="other events"):
        HRPF(3, tol=1e-3).fit(later, checkpoint=tmp_path / "plain")
