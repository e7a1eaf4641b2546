"""What one step does for real: a forward pass, a step of training, or the call of one kernel.

Imported only where a run executes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sandtable.engine.recorder import LATENCY
from sandtable_kernels.structured import butterfly as kernels
from sandtable_kernels.structured.butterfly_layout import ButterflyLayout
from sandtable_kernels.structured.torch_butterfly import memory
from sandtable_kernels.structured.torch_layers import matrix, parameter_groups
from sandtable_workloads.butterfly.butterfly_parameters import ButterflyVision
from sandtable_workloads.butterfly.networks.torch_network import build
from sandtable_workloads.training.executed.device import Device

COMPUTE = "compute_s"


class Work(ABC):
    """One step that can be repeated.

    Attributes:
        device: Where, with its clock.
    """

    def __init__(self, device: Device) -> None:
        self.device = device

    @abstractmethod
    def step(self) -> dict[str, float]:
        """Take one step, and return its seconds by name."""

    @abstractmethod
    def held(self) -> dict[str, float]:
        """Return bytes that stay between steps: weights, momentum, and what is given to the first layer."""


class Forward(Work):
    """A forward pass that keeps nothing for a backward one."""

    def __init__(self, device: Device, module: nn.Module, given: Tensor) -> None:
        super().__init__(device)
        self.module, self.given = module.eval(), given

    def step(self) -> dict[str, float]:
        """See `Work.step`."""
        with torch.inference_mode():
            return timed(self.device, lambda: self.module(self.given))

    def held(self) -> dict[str, float]:
        """See `Work.held`."""
        return {"weights": weight_bytes(self.module), "given": tensor_bytes([self.given])}


class Call(Work):
    """One call into memory that is there already."""

    def __init__(self, device: Device, call: Callable[[], object], arrays: dict[str, Iterable[Any]]) -> None:
        super().__init__(device)
        self.call, self.arrays = call, arrays

    def step(self) -> dict[str, float]:
        """See `Work.step`."""
        return timed(self.device, self.call)

    def held(self) -> dict[str, float]:
        """See `Work.held`."""
        return {kind: float(sum(array.nbytes for array in arrays)) for kind, arrays in self.arrays.items()}


class Training(Work):
    """Forward, backward, and SGD with momentum.

    A network learns random labels; a layer alone is given the gradient of its outputs, as layers behind it would.
    """

    def __init__(self, device: Device, module: nn.Module, given: Tensor, p: ButterflyVision) -> None:
        super().__init__(device)
        self.module, self.given = module.train(), given
        groups = parameter_groups(module, weight_decay=p.weight_decay)
        self.optimizer = torch.optim.SGD(groups, lr=p.learning_rate, momentum=p.momentum)
        self.labels = None if p.is_layer else torch.randint(p.classes, (len(given),)).to(given.device)
        self.gradient = torch.randn_like(module(given).detach()) if p.is_layer else None

    def step(self) -> dict[str, float]:
        """See `Work.step`."""
        clock = self.device.now
        start = clock()
        result = self.module(self.given)
        if self.labels is not None:
            result = nn.functional.cross_entropy(result, self.labels)
        forward = clock()
        result.backward(self.gradient)
        backward = clock()
        self.optimizer.step()
        self.optimizer.zero_grad()
        end = clock()
        seconds = {
            LATENCY: end - start,
            COMPUTE: end - start,
            "forward_s": forward - start,
            "backward_s": backward - forward,
            "optimizer_s": end - backward,
        }
        return seconds if self.labels is None else seconds | {"loss": float(result.detach())}

    def held(self) -> dict[str, float]:
        """See `Work.held`."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        given = [self.given] if self.gradient is None else [self.given, self.gradient]
        return {
            "weights": weight_bytes(self.module),
            "optimizer": tensor_bytes(value for value in states if torch.is_tensor(value)),
            "given": tensor_bytes(given),
        }


def work_of(p: ButterflyVision, device: Device, seed: int) -> Work:
    """Return what a step does, with seeded weights and random rows or images."""
    torch.manual_seed(seed)
    dtype = getattr(torch, p.precision)
    if p.is_layer:
        return _layer(p, device, dtype, seed)
    network = p.built()
    module = build(network, seed=seed).to(device.torch, dtype)
    shape = (p.batch, network.in_channels, network.resolution, network.resolution)
    images = torch.randn(shape).to(device.torch, dtype).contiguous(memory_format=torch.channels_last)
    return Training(device, module, images, p) if p.trains else Forward(device, module, images)


def _layer(p: ButterflyVision, device: Device, dtype: torch.dtype, seed: int) -> Work:
    layer = p.built().layers[0]
    rows = torch.randn(p.n_images, layer.n_in).to(device.torch, dtype)
    on_host = device.torch.type == "cpu"
    if not p.trains and on_host and p.structure == "butterfly":
        return _butterfly_call(p, device, rows, seed)
    if not p.trains and p.structure == "dense":
        return _dense_call(device, rows, layer.n_out)
    form: dict[str, Any] = {"base": layer.base, "residual": layer.residual, "options": dict(layer.options)}
    module = matrix(layer.structure, layer.n_in, layer.n_out, **form).to(device.torch, dtype)
    return Training(device, module, rows, p) if p.trains else Forward(device, module, rows)


def _dense_call(device: Device, rows: Tensor, n_out: int) -> Call:
    weights = (torch.randn(n_out, rows.shape[1]) / rows.shape[1] ** 0.5).to(rows.device, rows.dtype)
    out = rows.new_empty(len(rows), n_out)
    by_column = weights.T

    def call() -> None:
        torch.mm(rows, by_column, out=out)

    return Call(device, call, {"weights": [weights], "given": [rows, out]})


def _butterfly_call(p: ButterflyVision, device: Device, rows: Tensor, seed: int) -> Call:
    layout = ButterflyLayout(rows.shape[1], p.built().layers[0].n_out, p.base)
    start = torch.from_numpy(kernels.initial_weights(layout, np.random.default_rng(seed))).to(rows.dtype)
    x, weights = memory(rows), memory(start)
    out = np.empty((len(x), layout.n_out), x.dtype)
    residual, n_threads = p.residual, torch.get_num_threads()

    def call() -> None:
        kernels.butterfly(x, weights, layout, residual=residual, out=out, n_threads=n_threads)

    return Call(device, call, {"weights": [weights], "given": [x, out]})


def timed(device: Device, call: Callable[[], object]) -> dict[str, float]:
    """Return the seconds of a call, all of which is computing."""
    start = device.now()
    call()
    seconds = device.now() - start
    return {LATENCY: seconds, COMPUTE: seconds}


def tensor_bytes(tensors: Iterable[Tensor]) -> float:
    """Return the bytes of the elements of tensors."""
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def weight_bytes(module: nn.Module) -> float:
    """Return the bytes of weights, and of what is kept beside them, such as a norm's running mean."""
    return tensor_bytes([*module.parameters(), *module.buffers()])
