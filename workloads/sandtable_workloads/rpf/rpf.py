"""The workload `rpf`: fitting Poisson factorizations to events with times, planned for any machine and run for real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from sandtable import units
from sandtable.demand.operator import FloatArray
from sandtable.demand.plan import Plan
from sandtable.hardware import Frozen, Machine
from sandtable.model.cost_model import CostModel
from sandtable.model.intervals import joined
from sandtable.results import Metric, point
from sandtable.workload.seam import Execution, ExecutionContext, Verdict, Workload
from sandtable_workloads.rpf import rpf_memory
from sandtable_workloads.rpf.rpf_iterations import iterations_of
from sandtable_workloads.rpf.rpf_parameters import Rpf
from sandtable_workloads.rpf.rpf_plan import iteration_ops, plan_of

SECONDS_PER_HOUR = 3600.0


class RpfWorkload(Workload[Rpf]):
    """Fit a recommender to events with times: a Poisson factorization of any variant of the family."""

    name: ClassVar[str] = "rpf"
    parameters: ClassVar[type[Frozen]] = Rpf
    needs: ClassVar[tuple[str, ...]] = ("numba", "scipy")
    headlines: ClassVar[tuple[str, ...]] = ("fit_s", "fit_usd", "step_s.mean", "step_s", "updates_per_s")
    # how many earlier events of others excite one is known on average only
    memory_tolerance_frac: ClassVar[float] = 0.03

    def plan(self, parameters: Rpf, machine: Machine, seed: int) -> Plan:
        """Return equal iterations; see `sandtable_workloads.rpf.rpf_plan`.

        Raises:
            DoesNotFit: the machine's memory is too small.
        """
        return plan_of(parameters, machine)

    def subject(self, parameters: Rpf, machine: Machine) -> str:
        """Return the variant, the counts of its data, and how it is fitted."""
        p, count = parameters, units.format_count
        what = f"{p.variant.upper()}, K = {p.components}, {count(p.n_params)} parameters, {p.precision}"
        data = f"{count(p.events)} events of {count(p.users)} users and {count(p.items)} items"
        ranks = f", {p.ranks} ranks" if p.ranks > 1 else ""
        return f"{what}; {data}{ranks}"

    def derived(self, parameters: Rpf, machine: Machine, known: Mapping[str, Metric]) -> dict[str, Metric]:
        """Return (event, component) updates per second, and what a whole fit takes and costs."""
        step = known.get("step_s.mean") or known["step_s"]
        updates = float(parameters.events) * parameters.components
        low, most, high = iterations_of(parameters)
        below = joined([(1 - step.low / step.value, 0.0), (1 - low / most, 0.0)])
        above = joined([(step.high / step.value - 1, 0.0), (high / most - 1, 0.0)])
        value = step.value * most
        fit = Metric(value=value, low=value * (1 - below), high=value * (1 + above), unit="s")
        found = {
            "updates_per_s": Metric(
                value=updates / step.value, low=updates / step.high, high=updates / step.low, unit="updates/s"
            ),
            "fit_s": fit,
        }
        if machine.price is not None:
            usd_per_s = machine.price.usd_per_h / SECONDS_PER_HOUR
            found["usd_per_h"] = point(machine.price.usd_per_h, units.unit_of("usd_per_h"))
            found["fit_usd"] = Metric(
                value=fit.value * usd_per_s, low=fit.low * usd_per_s, high=fit.high * usd_per_s, unit="USD"
            )
        return found

    def caveats(self, parameters: Rpf, machine: Machine) -> Sequence[str]:
        """Return what the number of iterations rests on, and what a measured machine never timed."""
        found = []
        fitted = machine.processor.fitted
        passes = {op.operator for op in iteration_ops(parameters) if op.account == "compute"}
        if machine.environment and (fitted is None or not passes <= fitted.operators.keys()):
            found.append("passes were never timed on this machine: 'sandtable calibrate --only rpf' does")
        if parameters.iterations_to_converge is None:
            low, most, high = iterations_of(parameters)
            found.append(
                f"assumes {most:.0f} iterations ({low:.0f} to {high:.0f}), as fits of generated events took: "
                "set parameters.iterations_to_converge"
            )
        return found

    def estimate(self, parameters: Sequence[Rpf], machine: Machine) -> Mapping[str, FloatArray]:
        """Return the time of an iteration with its interval: its ops follow one another."""
        costs = CostModel(machine)
        rows = [[costs.time(op) for op in iteration_ops(p)] for p in parameters]
        ends = {"step_s": "seconds", "low_s": "low", "high_s": "high"}
        return {name: np.array([sum(getattr(t, end) for t in row) for row in rows]) for name, end in ends.items()}

    def verdicts(self, parameters: Sequence[Rpf], machine: Machine) -> Sequence[Verdict]:
        """Return whether each fits into memory."""
        return [rpf_memory.verdict_of(each, machine) for each in parameters]

    def what_fits(self, parameters: Rpf, machine: Machine) -> Sequence[str]:
        """Return the mildest change with which it fits."""
        return rpf_memory.what_fits(parameters, machine)

    def prepare(self, parameters: Rpf, machine: Machine, seed: int, context: ExecutionContext) -> None:
        """Check that this machine can do it, and fit a few events, which compiles kernels.

        Raises:
            ConfigError: more threads than this process may use.
        """
        from sandtable_workloads.rpf import rpf_run

        rpf_run.prepare(parameters, context)

    def execute(self, parameters: Rpf, machine: Machine, seed: int, context: ExecutionContext) -> Execution:
        """Generate events with exactly these counts, fit to them, and time every iteration."""
        from sandtable_workloads.rpf import rpf_run

        return rpf_run.run_fit(parameters, machine, seed, context)

    def example(self) -> dict[str, Any]:
        """Return a few users, items and events."""
        return {"users": 300, "items": 100, "events": 6000, "components": 5, "steps": 3, "warmup_steps": 1}

    def examples(self) -> Sequence[dict[str, Any]]:
        """Return every variant, one thread, float64, equal items."""
        small = self.example()
        return [
            small,
            small | {"variant": "pf", "threads": 1},
            small | {"variant": "hpf", "precision": "float64", "item_exponent": 0.0, "pairs": 6000},
            small | {"variant": "srpf", "followees": 4.0},
            small | {"variant": "drpf", "features": "hours"},
            small | {"variant": "dsrpf", "followees": 4.0},
            small | {"variant": "iirpf"},
            small | {"variant": "xiirpf", "clusters": 4},
        ]
