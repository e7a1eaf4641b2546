"""Training for real: the loss falls, schemes agree, and a run that was killed loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from sandtable.errors import ConfigError, MeasureError, NoDevice
from sandtable.hardware.library import load_machine
from sandtable.workload.seam import ExecutionContext

pytest.importorskip("torch", reason="training needs PyTorch")

import torch

from sandtable_workloads.training.executed import checkpoint, launcher, run_job, worker
from sandtable_workloads.training.executed.decoder import Decoder
from sandtable_workloads.training.executed.device import allocations, device_of, highest_sum
from sandtable_workloads.training.executed.job import Job, Record, append_record, read_records, result_path
from sandtable_workloads.training.executed.tokens import prepare_tokens
from sandtable_workloads.training.states import optimizers
from sandtable_workloads.training.training_parameters import SlmTraining

pytestmark = pytest.mark.measured

SMALL: dict[str, Any] = {
    "model": "tiny_2x32",
    "sequence_tokens": 32,
    "micro_batch": 4,
    "precision": "float32",
    "learning_rate": 3e-3,
    "steps": 8,
    "warmup_steps": 1,
}


def job(folder: Path, *, checkpoint_steps: int = 100, **changes: Any) -> Job:
    parameters = SlmTraining(**(SMALL | changes))
    tokens = prepare_tokens(folder, text=None, tokenizer="byte", vocabulary=256)
    runs = folder / f"run-{len(list(folder.glob('run-*')))}"
    runs.mkdir()
    return Job(
        parameters=parameters,
        seed=1,
        folder=runs,
        tokens=(tokens.path, tokens.n_tokens, tokens.n_train),
        n_threads=1,
        checkpoint_steps=checkpoint_steps,
        profile_memory=False,
    )


def losses(done: Job, of_rank: int = 0) -> list[float]:
    return [record.loss for record in read_records(done.folder, of_rank)]


def trained_here(todo: Job) -> Job:
    """Train on one rank, inside this process."""
    before = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    try:
        assert worker.train(todo, 0, 1) == 0
    finally:
        torch.set_num_threads(before[0])
        signal.signal(signal.SIGTERM, before[1])
    return todo


# --- the model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny_2x32", "tiny_4x128"])
def test_the_model_has_the_parameters_that_its_shape_counts(name: str) -> None:
    shape = SlmTraining(model=name).shape
    model = Decoder(shape, sequence_tokens=16, core="flash", checkpointing="none")
    assert sum(p.numel() for p in model.parameters()) == shape.n_params


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_vanilla_and_flash_attention_agree(n_kv_heads: int) -> None:
    shape = SlmTraining(model="tiny_4x128").shape.changed(n_kv_heads=n_kv_heads)
    tokens = torch.arange(24).reshape(2, 12)
    found = []
    for core in ("vanilla", "flash"):
        model = Decoder(shape, sequence_tokens=12, core=core, checkpointing="none")
        model.initialise(3)
        loss = model(tokens, tokens)
        loss.backward()
        found.append((loss.item(), model.blocks[0].attention.qkv.weight.grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("checkpointing", ["selective", "alternate", "full"])
def test_recomputing_changes_no_gradient(checkpointing: str) -> None:
    shape = SlmTraining(model="tiny_2x32").shape
    tokens = torch.arange(24).reshape(2, 12)
    gradients = []
    for kind in ("none", checkpointing):
        model = Decoder(shape, sequence_tokens=12, core="vanilla", checkpointing=kind)
        model.initialise(3)
        model(tokens, tokens).backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_no_token_sees_its_future() -> None:
    shape = SlmTraining(model="tiny_2x32").shape
    model = Decoder(shape, sequence_tokens=12, core="vanilla", checkpointing="none")
    model.initialise(3)
    first = torch.arange(12)[None]
    changed = first.clone()
    changed[0, -1] = 99
    ignored = torch.full((1, 12), -100)
    ignored[0, 5] = 7
    assert model(first, ignored).item() == model(changed, ignored).item()


# --- training ----------------------------------------------------------------------------------------------


def test_the_loss_falls_on_real_text(tmp_path: Path) -> None:
    done = trained_here(job(tmp_path, steps=60, micro_batch=8, sequence_tokens=64))
    found = losses(done)
    # 256 equally likely bytes cost ln 256 = 5.55 nats; English letters by frequency alone about 3.3
    assert found[0] == pytest.approx(np.log(256), abs=0.1)
    assert np.mean(found[-5:]) < 3.4
    assert all(np.isfinite(found))


def test_accumulating_equals_a_larger_batch(tmp_path: Path) -> None:
    whole = losses(trained_here(job(tmp_path, micro_batch=4)))
    parts = losses(trained_here(job(tmp_path, micro_batch=2, grad_accumulation=2)))
    np.testing.assert_allclose(parts, whole, rtol=1e-4)


@pytest.mark.parametrize("precision", ["bfloat16", "mixed_bfloat16"])
def test_half_types_train_as_well(tmp_path: Path, precision: str) -> None:
    exact = losses(trained_here(job(tmp_path)))
    found = losses(trained_here(job(tmp_path, precision=precision)))
    np.testing.assert_allclose(found, exact, rtol=0.03)
    assert found != exact


@pytest.mark.parametrize("sharding", ["ddp", "zero_1", "fsdp_grad_op", "fsdp_full"])
def test_two_ranks_learn_what_one_learns(tmp_path: Path, sharding: str) -> None:
    alone = losses(trained_here(job(tmp_path, micro_batch=4)))
    shared = job(tmp_path, micro_batch=2, devices=2, sharding=sharding)
    launcher.run(shared)
    both = [losses(shared, number) for number in range(2)]
    np.testing.assert_allclose(np.mean(both, axis=0), alone, rtol=1e-4)
    waiting = [record.communication_s for record in read_records(shared.folder, 0)]
    totals = [record.total_s for record in read_records(shared.folder, 0)]
    assert all(0 < part < whole for part, whole in zip(waiting, totals, strict=True))


# --- what goes wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "lion", "adafactor"])
def test_other_optimizers_learn_resume_and_hold_what_is_planned(tmp_path: Path, optimizer: str) -> None:
    rate = {"sgd": 0.1, "lion": 3e-4, "adafactor": 3e-3}[optimizer]
    changes = {"optimizer": optimizer, "learning_rate": rate}
    whole = job(tmp_path, steps=12, **changes)
    found = losses(trained_here(whole))
    assert found[-1] < found[0]
    states = json.loads(result_path(whole.folder, 0).read_text())["optimizer_bytes"]
    planned = optimizers.held_bytes(whole.parameters, whole.shape) * whole.shape.n_params
    # Adafactor does not factor vectors; queries, keys and values are one matrix here
    assert states == pytest.approx(planned, rel=0.1 if optimizer == "adafactor" else 0.01)
    part = job(tmp_path, steps=12, **changes)
    broken = worker.Trainer(part, device_of("cpu", 0), 0, 1)
    for number in range(5):
        append_record(part.folder, 0, broken.step(number))
        broken.n_done += 1
    broken.save()
    assert losses(trained_here(part)) == found


def when_recorded(folder: Path, n_steps: int, act: Callable[[], None]) -> threading.Thread:
    """Do ``act`` as soon as rank 1 has recorded ``n_steps`` steps."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while len(read_records(folder, 1)) < n_steps and time.monotonic() < deadline:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("sharding", ["fsdp_full"])
def test_a_killed_rank_ends_the_run_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharding: str
) -> None:
    options: dict[str, Any] = {"devices": 2, "sharding": sharding, "steps": 40, "warmup_steps": 0}
    whole = job(tmp_path, **options)
    launcher.run(whole)
    broken = job(tmp_path, checkpoint_steps=3, **options)
    started: list[launcher.Rank] = []
    start = launcher._start
    monkeypatch.setattr(launcher, "_start", lambda *given: started.append(start(*given)) or started[-1])
    killer = when_recorded(broken.folder, 8, lambda: os.kill(started[1].process.pid, signal.SIGKILL))
    with pytest.raises(MeasureError, match=r"rank 1 of 2 was ended by SIGKILL.*resumes"):
        launcher.run(broken)
    killer.join()
    assert all(one.process.poll() is not None for one in started)
    n_saved = checkpoint.latest(broken.folder)
    assert 6 <= n_saved < 40
    launcher.run(broken)
    assert losses(broken) == losses(whole)
    assert losses(broken, 1) == losses(whole, 1)
    assert [record.step for record in read_records(broken.folder, 0)] == list(range(40))


def test_a_rank_that_dies_with_its_result_written_is_done(tmp_path: Path) -> None:
    """Leaving the group, gloo may abort a rank as another one hangs up: nothing of the run is lost by that."""
    file = tmp_path / "rank0.json"
    process = subprocess.Popen([sys.executable, "-c", "import os; os.abort()"], stderr=subprocess.DEVNULL)
    process.wait()
    dead = launcher.Rank(number=0, process=process, stderr=tmp_path / "rank0.stderr", result=file)
    assert dead.code() == -signal.SIGABRT
    file.write_text("{}")
    assert dead.code() == 0


def test_being_told_to_stop_saves_what_is_done(tmp_path: Path) -> None:
    whole = losses(trained_here(job(tmp_path)))
    stopped = job(tmp_path)
    step = worker.Trainer.step

    def stop_after_three(self: worker.Trainer, number: int) -> Record:
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, number)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.Trainer, "step", stop_after_three)
        assert worker.train(stopped, 0, 1) == worker.STOPPED
    signal.signal(signal.SIGTERM, handler)
    assert checkpoint.latest(stopped.folder) == 3
    assert losses(trained_here(stopped)) == whole


@pytest.mark.parametrize("devices", [1, 2])
def test_the_store_may_be_named_from_here(in_tmp: Path, devices: int) -> None:
    Path("stores").mkdir()
    todo = job(Path("stores"), devices=devices, micro_batch=2, sharding="ddp", steps=2)
    launcher.run(todo)
    assert len(losses(todo)) == todo.parameters.steps + todo.parameters.warmup_steps


def test_a_rank_that_fails_gives_its_last_words(tmp_path: Path) -> None:
    todo = job(tmp_path)
    todo.tokens[0].unlink()
    with pytest.raises(MeasureError, match=r"rank 0 of 1 left with exit code 1: FileNotFoundError"):
        launcher.run(todo)


def test_a_gpu_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    context = ExecutionContext(folder=tmp_path, n_threads=2)
    with pytest.raises(NoDevice, match=r"no CUDA GPU that\s+PyTorch sees") as raised:
        run_job.prepare(SlmTraining(**SMALL), load_machine("aws_p4d_24xlarge"), 1, context)
    assert raised.value.exit_code == 4
    todo = job(tmp_path)
    with pytest.raises(NoDevice, match="PyTorch sees 0"):
        launcher.run(Job(**{name: getattr(todo, name) for name in Job.__dataclass_fields__} | {"device": "cuda"}))


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"tensor_parallel": 2, "devices": 2}, "tensor_parallel"), ({"precision": "mixed_fp8"}, "precision")],
)
def test_what_is_only_simulated_is_said(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"parameters.{name}"):
        run_job.check_executable(SlmTraining(**(SMALL | changes)))


# --- what is reported --------------------------------------------------------------------------------------


def test_an_execution_reports_its_steps(tmp_path: Path) -> None:
    context = ExecutionContext(folder=tmp_path, n_threads=2)
    parameters = SlmTraining(**SMALL)
    machine = load_machine("laptop_pcie4")
    execution = run_job.run_training(parameters, machine, 1, context)
    assert [step.phase for step in execution.steps] == ["warmup"] + ["train"] * 8
    gaps = []
    for step in execution.steps:
        parts = sum(step.counters[name] for name in ("forward_s", "backward_s", "optimizer_s"))
        assert parts <= step.total_s
        gaps.append(1 - (parts + 2e-4) / step.total_s)
    # between the parts another program may have had the processor, but not in most steps
    assert median(gaps) < 0.05
    for step in execution.steps:
        assert step.counters["tokens"] == 4 * 32
    n_params = parameters.shape.n_params
    assert execution.memory_bytes["weights"] == 4 * n_params
    assert execution.memory_bytes["optimizer"] == pytest.approx(8 * n_params, rel=0.01)
    assert execution.memory_bytes["activations"] > 4 * n_params
    assert execution.process_bytes is not None
    assert execution.process_bytes > sum(execution.memory_bytes.values())
    assert not list((tmp_path / "training").glob("*/"))


def test_memory_takes_the_plans_kinds() -> None:
    summary = {"weights_bytes": 10.0, "optimizer_bytes": 20.0, "buffers_bytes": 0.0, "peak_bytes": 90.0}
    planned = {"weights": 11.0, "optimizer": 22.0, "gradients": 10.0, "activations": 20.0}
    found = run_job.memory_of([summary, summary | {"peak_bytes": 50.0}], planned)
    assert list(found) == list(planned)
    assert found == {"weights": 10.0, "optimizer": 20.0, "gradients": 20.0, "activations": 40.0}
    buckets = run_job.memory_of([summary | {"buffers_bytes": 12.0}], planned)
    assert buckets == {"weights": 10.0, "optimizer": 20.0, "gradients": 12.0, "activations": 48.0}


def test_the_allocators_profile_finds_a_known_peak() -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as watched:
        one = torch.empty(1 << 20)
        two = torch.empty(1 << 19)
        del one
        three = torch.empty(1 << 18)
        del two, three
    assert highest_sum(allocations(watched)) == pytest.approx(6 << 20, rel=0.01)


def test_a_record_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    whole = Record(step=0, total_s=1, forward_s=0.3, backward_s=0.6, communication_s=0, optimizer_s=0.1, loss=5.5)
    append_record(tmp_path, 0, whole)
    with (tmp_path / "rank0.jsonl").open("a") as file:
        file.write('{"step": 1, "tot')
    assert read_records(tmp_path, 0) == [whole]
