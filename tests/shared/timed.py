"""Timings of operators made by their laws, and a machine that is calibrated from them: nothing is measured."""

from __future__ import annotations

from sandtable.calibration import machine_fit
from sandtable.calibration.timing import Timing
from sandtable.demand.operator import operator_named
from sandtable.hardware import LinkSheet, Machine, Roofline
from sandtable_kernels.pytorch.torch_operators import (
    TorchAttention,
    TorchCollective,
    TorchGemm,
    TorchKernel,
    TorchStream,
)

FACTORS = {"launch_s": 1.7, "bandwidth_frac": 0.8, "rate_frac": 0.7, "special_s": 3.0}


def made_up(kernel: TorchKernel, machine: Machine, *, quick: bool = False) -> list[Timing]:
    """Time a kernel's grid by its law, with constants away from the typical ones."""
    found = []
    for dims in kernel.grid(quick=quick):
        op = kernel.cost(dims)
        law = operator_named(op.operator)
        sheet: Roofline | LinkSheet = Roofline.of(machine.processor, machine.memory).share(op.sharing)
        if op.resource == "network":
            sheet = LinkSheet(1e9, 0.0)
        constants = {name: value * FACTORS.get(name, 1.0) for name, value in law.typical().items()}
        seconds = float(law.seconds(sheet, constants, law.columns(op.shape), dtype=op.dtype)[0])
        found.append(Timing.of_kernel(kernel, dims, [[seconds] * 3]))
    return found


def calibrated_for_training(machine: Machine) -> Machine:
    """Return a machine as `calibrate --only training,link` makes it: PyTorch's operators, gloo's collectives."""
    timed = [
        timing
        for kernel in (TorchGemm(), TorchAttention(), TorchStream(), TorchCollective())
        for timing in made_up(kernel, machine)
    ]
    return machine_fit.fitted(machine, timed, "made up")
