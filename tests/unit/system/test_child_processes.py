"""Children end with their parent, import nothing from the current folder, and caches have a place without a home."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandtable.system import caches, children, locks

PARENT = """
import subprocess, sys, time
from sandtable.system import children
environment = children.environment() | {"PYTHONPATH": sys.argv[1]}
child = subprocess.Popen(**children.started("worker_of_a_test", ["one"]), env=environment)
time.sleep(60)
"""
WORKER = """
import os, sys, time, pathlib
pathlib.Path("worker_of_a_test.pid").write_text(f"{os.getpid()} {sys.argv[1:]}")
end = time.monotonic() + 60
while time.monotonic() < end:
    pass  # works, and never lets go of the interpreter for long
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_parent(in_tmp: Path, ending: signal.Signals) -> None:
    (in_tmp / "code").mkdir()
    (in_tmp / "code" / "worker_of_a_test.py").write_text(WORKER)
    path = os.pathsep.join([str(in_tmp / "code"), *filter(None, [os.environ.get("PYTHONPATH")])])
    parent = subprocess.Popen([sys.executable, "-c", PARENT, path])
    said, deadline = Path("worker_of_a_test.pid"), time.monotonic() + 60
    while not (said.is_file() and said.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pid, _, arguments = said.read_text().partition(" ")
    assert arguments == "['one']"
    parent.send_signal(ending)
    parent.wait()
    deadline = time.monotonic() + 20
    while locks.is_running(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not locks.is_running(int(pid))


def test_code_in_the_current_folder_is_not_imported(in_tmp: Path) -> None:
    for name in ("random", "json", "sandtable"):
        Path(f"{name}.py").write_text("open('OWNED', 'w')")
    command = children.started("platform", ["--terse"])
    done = subprocess.run(**command, env=children.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not Path("OWNED").exists()


def test_what_other_launchers_say_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "SOMETHING"):
        monkeypatch.setenv(name, "1")
    found = children.environment()
    assert not {"MASTER_ADDR", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"} & set(found)
    assert found["SOMETHING"] == "1"


class TestCaches:
    @pytest.fixture(autouse=True)
    def nowhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME"):
            monkeypatch.setenv(name, "x")  # so that it is put back afterwards
            monkeypatch.delenv(name)
        monkeypatch.setenv("MPLCONFIGDIR", "mine")
        monkeypatch.setenv("HOME", os.devnull)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def test_without_a_home_they_lie_in_a_folder_of_ones_own(self, tmp_path: Path) -> None:
        caches.provide()
        own = tmp_path / f"sandtable-cache-{os.getuid()}"
        assert own.stat().st_mode & 0o777 == 0o700
        assert os.environ["NUMBA_CACHE_DIR"] == str(own / "numba_cache_dir")
        assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).is_dir()
        assert os.environ["MPLCONFIGDIR"] == "mine"

    def test_a_folder_that_others_may_write_is_not_taken(self, tmp_path: Path) -> None:
        open_to_all = tmp_path / f"sandtable-cache-{os.getuid()}"
        open_to_all.mkdir()
        open_to_all.chmod(0o777)
        caches.provide()
        assert not Path(os.environ["NUMBA_CACHE_DIR"]).is_relative_to(open_to_all)

    def test_with_a_home_nothing_changes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        caches.provide()
        assert "NUMBA_CACHE_DIR" not in os.environ


def test_what_is_set_for_this_process_is_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "_own", set())
    monkeypatch.setenv("SPIN_OF_THE_USER", "7")
    monkeypatch.delenv("SPIN_OF_OURS", raising=False)
    for name in ("SPIN_OF_THE_USER", "SPIN_OF_OURS"):
        children.set_for_this_process(name, "1000")
    assert (os.environ["SPIN_OF_THE_USER"], os.environ["SPIN_OF_OURS"]) == ("7", "1000")
    found = children.environment()
    assert found["SPIN_OF_THE_USER"] == "7"
    assert "SPIN_OF_OURS" not in found
    monkeypatch.delenv("SPIN_OF_OURS")
