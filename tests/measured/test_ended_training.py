"""Trainings that end in other ways than by finishing: no rank stays, nothing is lost, nothing wrong is resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sandtable.errors import InUse
from sandtable.hardware.library import load_machine
from sandtable.system import locks
from sandtable.workload.seam import Execution, ExecutionContext

pytest.importorskip("torch", reason="training needs PyTorch")

from sandtable_workloads.training.executed import job as files
from sandtable_workloads.training.executed import run_job
from sandtable_workloads.training.training_parameters import SlmTraining

pytestmark = [pytest.mark.alone, pytest.mark.measured]


@pytest.fixture(autouse=True)
def frequent_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_job, "CHECKPOINT_STEPS", 5)


SMALL: dict[str, Any] = {
    "model": "tiny_2x32",
    "sequence_tokens": 32,
    "micro_batch": 4,
    "precision": "float32",
    "steps": 40,
    "warmup_steps": 0,
}
TRAIN = """
import json, sys
from pathlib import Path
from sandtable.hardware.library import load_machine
from sandtable.workload.seam import ExecutionContext
from sandtable_workloads.training.executed import run_job
from sandtable_workloads.training.training_parameters import SlmTraining
context = ExecutionContext(folder=Path(sys.argv[1]), n_threads=1)
run_job.CHECKPOINT_STEPS = 5
run_job.run_training(SlmTraining(**json.loads(sys.argv[2])), load_machine("laptop_pcie4"), 1, context)
"""


def start(store: Path, parameters: dict[str, Any], **more: Any) -> subprocess.Popen[Any]:
    """Train in another process until there is a checkpoint."""
    command = [sys.executable, "-P", "-c", TRAIN, str(store), json.dumps(parameters)]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, **more)
    deadline = time.monotonic() + 120
    while not list(store.glob("training/*/checkpoint-1?/rank0.pt")) and running.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return running


def train(store: Path, parameters: dict[str, Any]) -> Execution:
    context = ExecutionContext(folder=store, n_threads=1)
    return run_job.run_training(SlmTraining(**parameters), load_machine("laptop_pcie4"), 1, context)


def losses(execution: Execution) -> list[float]:
    return [step.counters["loss"] for step in execution.steps]


def ranks_of(store: Path) -> list[str]:
    """Return the processes whose command line names the store."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if os.fsencode(store) in command and b"executed.worker" in command:
            found.append(path.parent.name)
    return found


def test_a_killed_command_takes_its_ranks_along_and_is_resumed_bit_by_bit(tmp_path: Path) -> None:
    two = SMALL | {"devices": 2, "micro_batch": 2, "sharding": "ddp"}
    running = start(tmp_path / "killed", two)
    with pytest.raises(InUse, match=rf"process {running.pid} \(since .*\) runs this very training"):
        train(tmp_path / "killed", two)
    assert len(ranks_of(tmp_path / "killed")) == 2
    running.kill()
    running.wait()
    deadline = time.monotonic() + 10
    while ranks_of(tmp_path / "killed") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ranks_of(tmp_path / "killed") == []
    again = train(tmp_path / "killed", two)
    assert again.validity == ()
    assert losses(again) == losses(train(tmp_path / "whole", two))
    # the tokens stay, for the next run; nothing else does
    assert {path.suffix for path in (tmp_path / "killed" / "training").iterdir()} == {".bin", ".json"}


def test_a_damaged_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    running = start(tmp_path / "damaged", SMALL)
    running.kill()
    running.wait()
    (folder,) = (path for path in (tmp_path / "damaged" / "training").iterdir() if path.is_dir())
    with locks.claimed(folder, "waits for the rank to end"):
        newest, before = files.checkpoints(folder)[:2]
        part = files.part_path(folder, newest, 0)
        data = bytearray(part.read_bytes())
        data[len(data) // 2] ^= 4
        part.write_bytes(data)
    again = train(tmp_path / "damaged", SMALL)
    assert f"the checkpoint of step {newest} is not gone on from" in again.validity[0]
    assert again.validity[-1] == f"trained again from step {before} on"
    assert losses(again) == losses(train(tmp_path / "whole", SMALL))


def test_what_is_meant_for_other_launchers_and_code_in_the_folder_do_not_matter(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "1", "RANK": "7", "WORLD_SIZE": "9"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    for name in ("random", "torch", "numpy"):
        Path(f"{name}.py").write_text("open('OWNED', 'w')")
    todo = SMALL | {"devices": 2, "micro_batch": 2, "sharding": "zero_1", "steps": 3}
    assert len(losses(train(Path("stores"), todo))) == 3
    assert not Path("OWNED").exists()


def test_ranks_that_run_out_of_memory_say_so() -> None:
    worker = subprocess.run([sys.executable, "-P", "-c", GREEDY], capture_output=True, text=True, check=False)
    assert worker.returncode == 5
    assert "out of memory" in worker.stderr


GREEDY = """
import sys
from sandtable_workloads.training.executed import worker
from pathlib import Path
def greedy(*_):
    import torch
    torch.empty(1 << 60, dtype=torch.uint8)
worker.train = greedy
worker.Job.load = classmethod(lambda cls, path: None)
sys.exit(worker.main(["job", "0", "1"]))
"""


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_end_writes_a_checkpoint(tmp_path: Path, ending: signal.Signals) -> None:
    command = TRAIN.replace(
        "import json", f"import signal\nsignal.signal({int(ending)}, signal.default_int_handler)\nimport json"
    )
    running = subprocess.Popen(
        [sys.executable, "-P", "-c", command, str(tmp_path), json.dumps(SMALL | {"steps": 5000})],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.glob("training/*/rank0.jsonl")):
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(ending)
    _, said = running.communicate(timeout=60)
    assert "the same command resumes there" in said
    (folder,) = (path for path in (tmp_path / "training").iterdir() if path.is_dir())
    assert files.checkpoints(folder)[0] == len(files.read_records(folder, 0))
    assert ranks_of(tmp_path) == []
