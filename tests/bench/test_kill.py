"""Commands are killed at random moments, again and again, and go on: nothing half written, nobody left, none lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from sandtable.hardware import Machine, library
from sandtable.runs.run_folder import RunFolder, list_runs
from sandtable_kernels.files import container
from sandtable_kernels.files.container import Header

pytestmark = pytest.mark.skipif(not os.environ.get("SANDTABLE_BENCH"), reason="minutes: set SANDTABLE_BENCH=1")
# done, and done with predictions that are off on a machine that is made up
FINISHED = (0, 3)
N = int(os.environ.get("SANDTABLE_KILLS", "20"))
MARK = "SANDTABLE_TEST_MARK"
FLASH = ("flash_demo", "--set", "parameters.model=opt_mini")
TRAINING = {
    "model": "tiny_2x32",
    "sequence_tokens": 32,
    "micro_batch": 4,
    "precision": "float32",
    "steps": 400,
    "warmup_steps": 0,
}


def command(*arguments: str, mark: str = "") -> subprocess.Popen[str]:
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "from sandtable.cli.app import main; main()"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", program, *arguments],
        env=os.environ | {MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def marked(mark: str) -> list[str]:
    """Return the processes that a command with this mark started, or that it is."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            here = f"{MARK}={mark}".encode() in (path / "environ").read_bytes()
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if here and state != "Z":
            found.append(path.name)
    return found


def whole(base: Path) -> None:
    """Read every file that stands under its own name."""
    for path in base.rglob("*"):
        if not path.is_file() or path.suffix in (".partial", ".lock", ".verified", ".stderr"):
            continue
        if path.suffix in (".neurons", ".weights"):
            container.verify(path, Header.read(path), "always", "block")
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".yaml":
            assert YAML(typ="safe").load(path)


def kill_again_and_again(first: tuple[str, ...], again: tuple[str, ...], longest_s: float) -> int:
    """Kill a command ``N`` times, going on with ``again`` where something was saved; return how often it had been."""
    rng, resumed = random.Random(str(first)), 0
    for index in range(N):
        ending = rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        mark = f"{os.getpid()}-{index}"
        running = command(*(again if saved() else first), mark=mark)
        resumed += saved()
        try:
            running.wait(rng.uniform(0.5, longest_s))
        except subprocess.TimeoutExpired:
            running.send_signal(ending)
        _, said = running.communicate(timeout=120)
        assert "Traceback" not in said, said
        assert running.returncode in (*FINISHED, -signal.SIGKILL, 130, -signal.SIGTERM, -signal.SIGINT), said
        deadline = time.monotonic() + 10
        while marked(mark) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert marked(mark) == [], "a process outlived its command"
        whole(Path())
        if running.returncode in FINISHED:
            # it was faster than its end: the next one begins anew
            shutil.rmtree("runs", ignore_errors=True)
    print(f"{first[0]}: {N} times ended or finished, {resumed} of them went on with what was saved")
    return resumed


def saved() -> bool:
    """Whether there is something to go on with."""
    runs = [run for run in list_runs() if run.written_ns()]
    return bool(runs) or Path("this_machine.yaml.partial").is_file()


def leftovers() -> list[str]:
    names = ("*.partial", "sandtable-cold-*", "*.lock", "*.tmp")
    return [str(path) for name in names for path in Path().rglob(name)]


@pytest.fixture
def calibrated(in_tmp: Path, machine: Machine) -> None:
    library.save_component(machine.model_copy(update={"name": "this_machine"}), Path("this_machine.yaml"))


@pytest.mark.parametrize("what", ["run", "check"])
def test_flash_runs(calibrated: None, what: str) -> None:
    first = (what, *FLASH, "--set", "repeats=12")
    kill_again_and_again(first, (what, "--resume", "latest"), 12.0)
    last = command(*((what, "--resume", "latest") if saved() else first))
    said = last.communicate(timeout=600)[1]
    assert last.returncode in (0, 3), said
    run = [run for run in list_runs() if run.written_ns()][-1]
    assert len(list(run.path.glob("execution-*.json"))) == 12
    assert run.measurement() is not None
    assert leftovers() == []


def test_training(calibrated: None) -> None:
    pytest.importorskip("torch")
    settings = [f"parameters.{name}={value}" for name, value in TRAINING.items()]
    first = ("run", "slm_local", *(word for one in (*settings, "repeats=1") for word in ("--set", one)))
    kill_again_and_again(first, first, 25.0)
    last = command(*first)
    said = last.communicate(timeout=600)[1]
    assert last.returncode == 0, said
    broken = losses(list_runs()[-1])
    undisturbed = command(*first, "--store", "another")
    undisturbed.communicate(timeout=600)
    assert losses(list_runs()[-1]) == broken
    assert leftovers() == []


def losses(run: RunFolder) -> list[Any]:
    kept = json.loads((run.path / "execution-1.json").read_text())
    found: list[Any] = kept["units"]["train"]["loss"]
    assert len(found) == TRAINING["steps"]
    return found


def test_calibration(in_tmp: Path) -> None:
    first = ("calibrate", "--quick", "--file-size", "256 MiB")
    kill_again_and_again(first, ("calibrate", "--resume"), 30.0)
    last = command(*(("calibrate", "--resume") if Path("this_machine.yaml.partial").is_file() else first))
    said = last.communicate(timeout=3000)[1]
    assert last.returncode == 0, said
    library.load_machine("this_machine.yaml")
    assert leftovers() == []
    assert list(Path("stores").iterdir()) == []
