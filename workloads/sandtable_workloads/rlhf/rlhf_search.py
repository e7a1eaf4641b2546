"""Where to run a campaign, and on how many devices: the same models, prompts and batches elsewhere.

All models share the devices, or half of these generate. Weights are sharded, and activations computed again, where the
campaign would not fit otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from sandtable import units
from sandtable.errors import ConfigError
from sandtable.hardware import Machine
from sandtable.studies.cheapest import Goal, Search
from sandtable_workloads.rlhf import rlhf_campaign, rlhf_memory
from sandtable_workloads.rlhf.rlhf_parameters import OWN_DEVICES, Rlhf
from sandtable_workloads.training.choices.search import device_counts

# the mildest first
LAYOUTS: tuple[Mapping[str, Any], ...] = (
    {"sharding": "ddp", "checkpointing": "none"},
    {"sharding": "fsdp_full", "checkpointing": "none"},
    {"sharding": "fsdp_full", "checkpointing": "full"},
)
# devices of which some only generate
LEAST_APART = 4


class RlhfSearch(Search[Rlhf]):
    """Devices, and where generation goes."""

    name: ClassVar[str] = "rlhf"
    settings: ClassVar[tuple[str, ...]] = (
        "devices",
        "placement",
        "generation_devices",
        "sharding",
        "checkpointing",
    )

    def goal(self, parameters: Rlhf, until: Mapping[str, float]) -> Goal:
        """Return the iterations of the campaign.

        Raises:
            ConfigError: another goal.
        """
        if until:
            raise ConfigError("rlhf runs until its parameters.total_prompts: set those instead of --until")
        p = parameters
        prompts = f"{units.format_count(p.n_iterations * p.rollout_batch)} prompts"
        words = (
            f"{p.method.upper()} of {p.shape.name} against the {p.reference} on {prompts}, with what comes before"
        )
        return Goal(words=words, amount=float(p.n_iterations), unit="iterations")

    def cases(self, parameters: Rlhf, machine: Machine, most_devices: int) -> Iterator[dict[str, Any]]:
        """Yield devices, shared by all or half of them for generation, each in the mildest layout that fits."""
        shared: dict[str, Any] = {"placement": "colocated", "generation_tensor_parallel": 1}
        shared |= {f"{role}_devices": 0 for role in OWN_DEVICES}
        for devices in device_counts(machine, most_devices):
            halves = {"placement": "separate", "generation_devices": devices // 2}
            for apart in ({}, halves) if devices >= LEAST_APART else ({},):
                placed = shared | {"devices": devices} | apart
                yield placed | dict(self._layout(parameters, machine, placed))

    def _layout(self, p: Rlhf, machine: Machine, placed: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the mildest layout that fits, the last one if none does."""
        for layout in LAYOUTS[:-1]:
            tried = p.model_copy(update=dict(placed) | dict(layout))
            if not rlhf_memory.fault_of(tried, machine) and rlhf_memory.verdict_of(tried, machine).fits:
                return layout
        return LAYOUTS[-1]

    def amount_per_step(self, parameters: Rlhf) -> float:
        """An iteration, with its part of what comes before."""
        return 1.0

    def n_machines(self, parameters: Rlhf, machine: Machine) -> float:
        """Return how many machines the devices take."""
        return rlhf_campaign.n_machines(parameters, machine)
