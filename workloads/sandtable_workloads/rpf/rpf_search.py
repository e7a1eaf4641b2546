"""Where to fit a Poisson factorization: the same fit on every machine that computes on CPUs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from sandtable import units
from sandtable.errors import ConfigError
from sandtable.hardware import Machine
from sandtable.studies.cheapest import Goal, Search
from sandtable_workloads.rpf.rpf_iterations import iterations_of
from sandtable_workloads.rpf.rpf_parameters import Rpf


class RpfSearch(Search[Rpf]):
    """The same events, variant and components, with all threads of a machine; accelerators would stay idle."""

    name: ClassVar[str] = "rpf"
    settings: ClassVar[tuple[str, ...]] = ("threads",)

    def goal(self, parameters: Rpf, until: Mapping[str, float]) -> Goal:
        """Return the iterations of a whole fit.

        Raises:
            ConfigError: another goal.
        """
        unknown = ", ".join(name for name in until if name != "iterations")
        if unknown:
            raise ConfigError(f"rpf is fitted until iterations, not {unknown}: leave --until out for convergence")
        amount = until.get("iterations", iterations_of(parameters)[1])
        if amount <= 0:
            raise ConfigError("--until iterations must be above zero")
        p, count = parameters, units.format_count
        words = f"fit {p.variant}, K = {p.components}, to {count(p.events)} events in {amount:.0f} iterations"
        return Goal(words=words, amount=amount, unit="iterations")

    def cases(self, parameters: Rpf, machine: Machine, most_devices: int) -> Iterator[dict[str, Any]]:
        """Yield all threads of a machine without accelerators."""
        if machine.accelerator is None:
            yield {"threads": machine.processor.datasheet.cores}

    def amount_per_step(self, parameters: Rpf) -> float:
        """An iteration."""
        return 1.0

    def n_machines(self, parameters: Rpf, machine: Machine) -> float:
        """One."""
        return 1.0
