"""One rank of a training run: ``python -m sandtable_workloads.training.executed.worker JOB RANK RANKS``, or under
``torchrun``; `sandtable_workloads.training.executed.launcher` starts them.

Builds the model, resumes from the newest checkpoint, trains, and appends what it saw of every step to its record. It
is told to stop by SIGTERM: the ranks agree on the step after which they stop, and write a checkpoint. Imported only
where a run executes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sandtable.errors import DoesNotFit, SandtableError
from sandtable.system import limits
from sandtable_workloads.training.executed import checkpoint, shard
from sandtable_workloads.training.executed.decoder import Decoder
from sandtable_workloads.training.executed.device import Device, device_of
from sandtable_workloads.training.executed.job import (
    RENDEZVOUS,
    Job,
    Record,
    append_record,
    keep_records,
    save_result,
)
from sandtable_workloads.training.executed.tokens import Batches, TokenFile

STOPPED = 75  # exit code of a rank that stopped because it was asked to (EX_TEMPFAIL)


class Trainer:
    """The training loop of one rank."""

    def __init__(self, job: Job, device: Device, rank: int, n_ranks: int) -> None:
        self.job, self.device, self.rank, self.n_ranks = job, device, rank, n_ranks
        parameters = job.parameters
        self.batches = batches(job, "train", rank, n_ranks)
        self.scheme = shard.spread(model_of(job, device), parameters, device)
        self.autocast = parameters.precision.startswith("mixed") and not parameters.sharding.startswith("fsdp")
        self.stop = False
        self.n_done = checkpoint.latest(job.folder)
        if self.n_done:
            state = checkpoint.load(job.folder, self.n_done, rank)
            checkpoint.restore(self.scheme.module, self.scheme.local_optimizer, state)
        keep_records(job.folder, rank, self.n_done)

    def run(self) -> bool:
        """Train to the end and return True, or until told to stop and return False."""
        signal.signal(signal.SIGTERM, self._told_to_stop)
        while self.n_done < self.job.n_steps:
            self.barrier()
            record = self.step(self.n_done)
            append_record(self.job.folder, self.rank, record)
            self.n_done += 1
            stopping = self._agreed(self.stop)
            if stopping or (self.n_done % self.job.checkpoint_steps == 0 and self.n_done < self.job.n_steps):
                self.save()
            if stopping:
                return False
        return True

    def _told_to_stop(self, *_: Any) -> None:
        self.stop = True

    def _agreed(self, stop: bool) -> bool:
        """Return whether any rank was told to stop: all stop after the same step."""
        if self.n_ranks == 1:
            return stop
        flag = torch.tensor([float(stop)], device=self.device.torch)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.n_ranks > 1:
            dist.barrier()

    def save(self) -> None:
        """Write a checkpoint of all steps so far."""
        state = checkpoint.state_of(self.scheme.module, self.scheme.local_optimizer)
        checkpoint.save(self.job.folder, self.n_done, self.rank, state, self.barrier)

    def step(self, number: int) -> Record:
        """Train on one batch per rank: micro-batches forward and backward, then the optimiser."""
        clock, waiting, scheme = self.device.now, self.scheme.waiting, self.scheme
        accumulation = self.job.parameters.grad_accumulation
        forward_s = backward_s = loss_sum = 0.0
        begin = clock()
        for micro in range(accumulation):
            start = clock()
            loss = self._loss(self.batches, number, micro)
            middle = clock()
            scheme.backward(loss / accumulation if accumulation > 1 else loss, last=micro == accumulation - 1)
            end = clock()
            forward_s += middle - start
            backward_s += end - middle
            loss_sum += float(loss.detach())
        before_optimizer = clock()
        scheme.optimizer_step()
        end = clock()
        return Record(
            step=number,
            total_s=end - begin,
            forward_s=forward_s,
            backward_s=backward_s,
            communication_s=waiting.take(),
            optimizer_s=end - before_optimizer,
            loss=loss_sum / accumulation,
            ended_s=end,
        )

    def _loss(self, data: Batches, step: int, micro: int) -> torch.Tensor:
        inputs, targets = (torch.from_numpy(part.copy()).to(self.device.torch) for part in data.at(step, micro))
        with self._types():
            loss: torch.Tensor = self.scheme.module(inputs, targets)
        return loss

    def _types(self) -> contextlib.AbstractContextManager[object]:
        if not self.autocast:
            return contextlib.nullcontext()
        mixed: contextlib.AbstractContextManager[object] = torch.autocast(
            self.device.torch.type, dtype=torch.bfloat16
        )
        return mixed

    def validate(self) -> float:
        """Return the mean loss over up to eight batches that training never sees."""
        held_out = batches(self.job, "validation", self.rank, self.n_ranks)
        n = max(1, min(8, held_out.n_windows // (held_out.batch * self.n_ranks)))
        with torch.no_grad():
            losses = [float(self._loss(held_out, index, 0)) for index in range(n)]
        return sum(losses) / n

    def held_bytes(self) -> dict[str, float]:
        """Return the bytes of what stays between steps, on this rank: weights, optimiser, buckets."""
        weights = sum(n_bytes(parameter) for parameter in self.scheme.module.parameters())
        states = self.scheme.local_optimizer.state.values()
        optimizer = sum(n_bytes(value) for state in states for value in state.values() if torch.is_tensor(value))
        return {
            "weights": float(weights),
            "optimizer": float(optimizer),
            "buffers": self.scheme.buffer_bytes,
        }


def n_bytes(tensor: Any) -> int:
    """Return the bytes of a tensor's part on this rank."""
    part = checkpoint.local(tensor.detach())
    return int(part.numel() * part.element_size())


def batches(job: Job, split: str, rank: int, n_ranks: int) -> Batches:
    """Return a rank's share of the training or validation tokens."""
    path, n_tokens, n_train = job.tokens
    file = TokenFile(path=path, n_tokens=n_tokens, n_train=n_train, vocabulary=0)
    parameters = job.parameters
    return Batches(
        tokens=file.split(split),
        sequence_tokens=parameters.sequence_tokens,
        batch=parameters.micro_batch,
        seed=job.seed,
        rank=rank,
        n_ranks=n_ranks,
        accumulation=parameters.grad_accumulation if split == "train" else 1,
    )


def model_of(job: Job, device: Device) -> Decoder:
    """Return the model with its first weights, the same on every rank."""
    parameters = job.parameters
    model = Decoder(
        job.shape,
        sequence_tokens=parameters.sequence_tokens,
        core=parameters.attention,
        checkpointing=parameters.checkpointing,
    )
    model.initialise(job.seed)
    model.to(device.torch, shard.DTYPES[parameters.precision])
    return model


def summary(trainer: Trainer) -> dict[str, float]:
    """Return what a finished run knows besides its steps: bytes held, the peak, the loss on unseen text."""
    job = trainer.job
    found = {f"{kind}_bytes": value for kind, value in trainer.held_bytes().items()}
    found["resident_bytes"] = trainer.device.cache_bytes()
    if job.profile_memory:
        held = sum(trainer.held_bytes().values())
        found["peak_bytes"] = trainer.device.peak_bytes(held, lambda: trainer.step(job.n_steps))
    _, n_tokens, n_train = job.tokens
    if n_tokens - n_train > job.parameters.sequence_tokens:  # a short text has no sequence to spare
        found["validation_loss"] = trainer.validate()
    return found


def train(job: Job, rank: int, n_ranks: int) -> int:
    """Run one rank and return its exit code."""
    torch.set_num_threads(job.n_threads)
    local = int(os.environ.get("LOCAL_RANK", rank))
    device = device_of(job.device, local)
    resident_before = device.cache_bytes()
    shard.join(device, (job.folder / RENDEZVOUS).absolute().as_uri(), rank, n_ranks)
    try:
        trainer = Trainer(job, device, rank, n_ranks)
        if not trainer.run():
            return STOPPED
        found = summary(trainer) | {"resident_before_bytes": resident_before, "finished_s": time.time()}
        save_result(job.folder, rank, found)
        trainer.barrier()
    finally:
        shard.leave()
    return 0


def main(arguments: list[str]) -> int:
    """Read the job and the rank's place, from the arguments or from torchrun's environment."""
    job = Job.load(Path(arguments[0]))
    rank = int(arguments[1]) if len(arguments) > 1 else int(os.environ.get("RANK", "0"))
    n_ranks = int(arguments[2]) if len(arguments) > 2 else int(os.environ.get("WORLD_SIZE", "1"))
    try:
        return train(job, rank, n_ranks)
    except SandtableError as error:
        sys.stderr.write(f"{error}\n")  # the parent reads the last line
        return error.exit_code
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        sys.stderr.write(f"{limits.out_of_memory(error)}\n")
        return DoesNotFit.exit_code


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out; PyTorch's allocators have kinds and words of their own for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "t allocate memory" in str(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
