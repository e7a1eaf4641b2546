"""How a model is spread over ranks, and how long a rank stands waiting for the others.

``ddp`` and ``zero_1`` are PyTorch's DistributedDataParallel (with ZeroRedundancyOptimizer), ``fsdp_*`` its
``fully_shard``, one unit per layer. Waiting is timed where it happens: a bucket's reduction after the last gradient
is there, a gather or scatter that blocks with the copies around it, the exchange after a sharded optimiser's step.
Imported only where a run executes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from sandtable_workloads.training.executed.device import Device
from sandtable_workloads.training.states.torch_optimizers import EXECUTED
from sandtable_workloads.training.training_parameters import SlmTraining

# what a unit of fully_shard does around its collectives (torch.distributed.fsdp._fully_shard, FSDPParamGroup)
SHARDED_CALLS = ("unshard", "wait_for_unshard", "reshard", "post_backward")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "mixed_bfloat16": torch.float32}


class Waiting:
    """Adds up the seconds in which this rank stood waiting for others, or copied what they send to each other."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.seconds = 0.0
        self.last_bucket: float | None = None
        self.depth = 0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Time a call that blocks; of nested ones the outer one counts."""
        start, self.depth = self.device.now(), self.depth + 1
        try:
            yield
        finally:
            self.depth -= 1
            if not self.depth:
                self.seconds += self.device.now() - start

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a call that is timed."""

        @wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.timed():
                return call(*args, **kwargs)

        return timed

    def take(self) -> float:
        """Return the seconds so far, and start anew."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def after_backward(self) -> None:
        """Count the time since the last bucket was handed over: from then on backward only waited."""
        if self.last_bucket is not None:
            self.seconds += self.device.now() - self.last_bucket
            self.last_bucket = None


class Plain:
    """A model on one rank."""

    def __init__(self, model: nn.Module, parameters: SlmTraining, device: Device) -> None:
        self.parameters = parameters
        self.waiting = Waiting(device)
        # PyTorch's wrappers add methods that its types do not know
        self.module: Any = self.spread(model)
        self.optimizer: Any = self.make_optimizer()

    @property
    def buffer_bytes(self) -> float:
        """Bytes that are held between steps besides weights and optimiser states."""
        return 0.0

    def spread(self, model: Any) -> nn.Module:
        """Return the model as this scheme runs it."""
        return model

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimiser of all weights; AdamW is one fused call."""
        made, settings = EXECUTED[self.parameters.optimizer]
        found: torch.optim.Optimizer = made(self.module.parameters(), lr=self.parameters.learning_rate, **settings)
        return found

    @property
    def local_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser that holds this rank's states."""
        inner: torch.optim.Optimizer = self.optimizer
        return inner

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add gradients; on the ``last`` micro-batch of a step they are reduced over the ranks."""
        loss.backward()

    def optimizer_step(self) -> None:
        """Change the weights, and forget the gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class DataParallel(Plain):
    """Everything on every rank; gradients are averaged in buckets while backward goes on."""

    @property
    def buffer_bytes(self) -> float:
        """The buckets, of which the gradients are views."""
        return float(sum(p.numel() * p.element_size() for p in self.module.parameters()))

    def spread(self, model: Any) -> nn.Module:
        """Wrap for bucketed reduction."""
        wrapped = nn.parallel.DistributedDataParallel(
            model,
            device_ids=None if self.waiting.device.torch.type == "cpu" else [self.waiting.device.torch.index],
            bucket_cap_mb=self.parameters.bucket_bytes / (1 << 20),
            gradient_as_bucket_view=True,
            broadcast_buffers=False,
        )
        # PyTorch compares a hook's annotations, which are strings here: a lambda has none
        wrapped.register_comm_hook(None, lambda _, bucket: self._reduce(bucket))
        return wrapped

    def _reduce(self, bucket: Any) -> Any:
        buffer = bucket.buffer().div_(dist.get_world_size())
        work: Any = dist.all_reduce(buffer, async_op=True)
        if bucket.is_last():
            self.waiting.last_bucket = self.waiting.device.now() if self.waiting.device.backend == "gloo" else None
        return work.get_future().then(lambda done: done.value()[0])

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Reduce over the ranks on the last micro-batch only."""
        if last:
            loss.backward()
            self.waiting.after_backward()
        else:
            with self.module.no_sync():
                loss.backward()


class ShardedOptimizer(DataParallel):
    """Like `DataParallel`, with each rank keeping the optimiser's states of its part of the weights (ZeRO-1)."""

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimiser over this rank's part; the others' weights arrive after each step."""
        from torch.distributed.optim import ZeroRedundancyOptimizer

        made, settings = EXECUTED[self.parameters.optimizer]
        optimizer: Any = ZeroRedundancyOptimizer(
            self.module.parameters(),
            optimizer_class=made,
            lr=self.parameters.learning_rate,
            **settings,
        )
        exchange = optimizer._sync_params

        def timed_exchange() -> None:
            with self.waiting.timed():
                exchange()

        optimizer._sync_params = timed_exchange
        return optimizer

    @property
    def local_optimizer(self) -> torch.optim.Optimizer:
        """The one inside, over this rank's part."""
        inner: torch.optim.Optimizer = self.optimizer.optim
        return inner


class FullyShard(Plain):
    """Gradients and optimiser sharded, and the weights too (``fsdp_full``): a layer is gathered when its turn comes."""

    def spread(self, model: Any) -> nn.Module:
        """Make each layer a unit, and the rest another."""
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        policy = MixedPrecisionPolicy()
        if self.parameters.precision == "mixed_bfloat16":
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        again = self.parameters.sharding == "fsdp_full"
        for block in model.blocks:
            fully_shard(block, reshard_after_forward=again, mp_policy=policy)
        # embedding and head stay gathered: they are needed again as soon as backward begins
        fully_shard(model, reshard_after_forward=False, mp_policy=policy)
        if self.waiting.device.backend == "gloo":
            for unit in [*model.blocks, model]:
                self._time(unit)
        return model

    def _time(self, unit: Any) -> None:
        """Time what a unit does to gather weights and to scatter gradients: all of it blocks, with gloo."""
        group = unit._get_fsdp_state()._fsdp_param_group
        for name in SHARDED_CALLS if group is not None else ():
            setattr(group, name, self.waiting.around(getattr(group, name)))

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Reduce over the ranks on the last micro-batch only."""
        self.module.set_requires_gradient_sync(last)
        loss.backward()


SCHEMES: dict[str, type[Plain]] = {
    "ddp": DataParallel,
    "zero_1": ShardedOptimizer,
    "fsdp_grad_op": FullyShard,
    "fsdp_full": FullyShard,
}


def spread(model: nn.Module, parameters: SlmTraining, device: Device) -> Plain:
    """Return the model as ``parameters.sharding`` runs it; alone on one rank there is nothing to spread."""
    scheme = SCHEMES[parameters.sharding] if dist.is_initialized() else Plain
    return scheme(model, parameters, device)


def join(device: Device, rendezvous: str, rank: int, n_ranks: int) -> None:
    """Join the group of ranks: through a file on one machine, or as ``torchrun`` says it."""
    if n_ranks == 1:
        return
    if device.backend == "gloo" and Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if "MASTER_ADDR" in os.environ:
        dist.init_process_group(device.backend)
    else:
        dist.init_process_group(device.backend, init_method=rendezvous, rank=rank, world_size=n_ranks)


def leave() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
