"""States and weights that lie on the host or on its drive: bytes in each place, and the time to move them.

Gradients leave the device as they are made, beside the backward pass; the host updates its share of the states, and
weights come back piece by piece while it goes on (ZeRO-Offload, Ren et al., arXiv 2101.06840, sections 4 and 5).
States on a drive are read, updated and written piece by piece, and weights that lie elsewhere come layer by layer in
both passes (ZeRO-Infinity, Rajbhandari et al., arXiv 2104.07857, sections 5 and 6).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sandtable.demand.op import Op
from sandtable.demand.operator_shapes import Number, SequentialReadShape
from sandtable.errors import DoesNotFit
from sandtable.hardware import Machine
from sandtable.model.cost_model import CostModel
from sandtable.units import format_bytes
from sandtable_workloads.training.step_numbers import SHARDING, Configuration
from sandtable_workloads.training.training_parameters import SlmTraining

# so many bytes tell what one takes: latencies do not count
PROBE_BYTES = 1e9
CHUNK_BYTES = float(1 << 20)
# layers whose weights or gradients are on the device at a time: the one at work and the one that comes or goes
LAYERS_HELD = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """Seconds beside each forward and each backward pass, and of the step of an optimiser that is not on the device."""

    forward_s: Number
    backward_s: Number
    optimizer_s: Number


def is_offloaded(c: Configuration) -> bool:
    """Whether anything lies elsewhere."""
    return c.offload_optimizer != "none" or c.offload_parameters != "none"


def shares(c: Configuration, held: Number) -> tuple[Number, Number]:
    """Return the parameters whose states, and those whose weights, one device has to do with, of ``held``."""
    level = np.asarray(c.sharding)
    states = held / np.where(level >= SHARDING["zero_1"], c.replicas, 1.0)
    return states, held / np.where(level >= SHARDING["fsdp_full"], c.replicas, 1.0)


def moves(c: Configuration, costs: CostModel, held: Number) -> Moves:
    """Return the time of what is moved; ``held`` are the parameters of one device before sharding.

    The devices of a machine share the host's memory and its drive, each has a link of its own.
    """
    states, weights = shares(c, held)
    local = np.minimum(c.per_machine, c.devices)
    link, host, read, write = _per_byte(costs)
    coming = weights * c.item_bytes * np.maximum(link, local * read * (c.offload_parameters == "nvme"))
    coming = coming * (c.offload_parameters != "none")
    if c.offload_optimizer == "none":
        return Moves(forward_s=coming, backward_s=coming, optimizer_s=0.0)
    leaving, back = states * c.item_bytes * link, states * c.item_bytes * link * (c.offload_parameters == "none")
    updated = states * local * c.state_bytes * host
    stored = states * local * c.host_state_bytes * (read + write) * (c.offload_optimizer == "nvme")
    # links carry both ways at a time
    return Moves(
        forward_s=coming,
        backward_s=np.maximum(coming, leaving),
        optimizer_s=np.maximum(np.maximum(updated, back), stored),
    )


def _per_byte(costs: CostModel) -> tuple[float, float, float, float]:
    """Return the seconds of a byte on a device's link, in an update on the host, and read and written on the drive."""
    machine = costs.machine

    def seconds(operator: str, **fields: Any) -> float:
        probe = Op(name="probe", account="communication", operator=operator, **fields)
        return costs.time(probe).seconds / PROBE_BYTES

    link = seconds("transfer", bytes_read=PROBE_BYTES, on="accelerator")
    host = seconds("elementwise", bytes_read=PROBE_BYTES, on="host")
    read = seconds("sequential_read", shape=SequentialReadShape(PROBE_BYTES, CHUNK_BYTES, 32), on="host")
    written = machine.storage.datasheet.sequential_write_bytes_per_s
    return link, host, read, read if written is None else 1 / written


def elsewhere(p: SlmTraining, c: Configuration, held: Number) -> dict[str, float]:
    """Return the bytes that all devices of one machine keep on its host, and on its drive."""
    states, weights = (float(np.asarray(share)) for share in shares(c, held))
    local = float(np.asarray(np.minimum(c.per_machine, c.devices)))
    found = {"host": 0.0, "nvme": 0.0}
    if c.offload_optimizer != "none":
        found[c.offload_optimizer] += states * local * float(np.asarray(c.host_state_bytes))
        found["host"] += states * local * p.gradient_bytes
    if c.offload_parameters != "none":
        found[c.offload_parameters] += weights * local * p.weight_bytes
    return found


def check(p: SlmTraining, c: Configuration, held: Number, machine: Machine) -> None:
    """Refuse what the host's memory or its drive does not hold.

    Raises:
        DoesNotFit: with what is needed and what there is.
    """
    sizes = {"host": machine.memory.datasheet.capacity_bytes, "nvme": machine.storage.datasheet.capacity_bytes}
    for place, needed in elsewhere(p, c, held).items():
        if needed > sizes[place]:
            what = "host memory" if place == "host" else "drive"
            raise DoesNotFit(
                f"what is offloaded takes {format_bytes(needed)} of each {what} and {machine.name} has "
                f"{format_bytes(sizes[place])}: offload less, or spread the training over more machines"
            )
