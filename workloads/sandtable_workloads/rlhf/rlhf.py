"""The workload `rlhf`: PPO against a frozen reference, an SFT model or a soup of several, and what comes before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from sandtable.demand.operator import FloatArray
from sandtable.demand.plan import Plan
from sandtable.engine.simulation import run
from sandtable.hardware import Frozen, Machine
from sandtable.model.cost_model import CostModel
from sandtable.results import Metric
from sandtable.workload.seam import Execution, ExecutionContext, Verdict, Workload
from sandtable_workloads.rlhf import rlhf_campaign, rlhf_memory
from sandtable_workloads.rlhf.rlhf_parameters import Rlhf
from sandtable_workloads.rlhf.rlhf_plan import ITERATION, REWARD, ROLLOUT, SCORING, SFT, SOUP, UPDATE, plan_of
from sandtable_workloads.training.layout import never_timed
from sandtable_workloads.transformer import model_facts
from sandtable_workloads.transformer.presets import describe

# in a search, batches within this factor are decoded as their mean
COARSE = 1.3


class RlhfWorkload(Workload[Rlhf]):
    """Align a model: SFT, reward model, soup, and PPO's iterations of rollouts, scoring and updates; or DPO."""

    name: ClassVar[str] = "rlhf"
    parameters: ClassVar[type[Frozen]] = Rlhf
    example_stack: ClassVar[str | None] = "pytorch_cpu"
    headlines: ClassVar[tuple[str, ...]] = (rlhf_campaign.CAMPAIGN_S, rlhf_campaign.CAMPAIGN_USD)
    # every phase, and all of them together
    judged: ClassVar[tuple[str, ...]] = (
        f"{ITERATION}_s.mean",
        *(f"{section}_s.mean" for section in (ROLLOUT, SCORING, UPDATE)),
        *(f"{phase}_s" for phase in (SFT, REWARD, SOUP)),
        rlhf_campaign.CAMPAIGN_S,
    )
    needs: ClassVar[tuple[str, ...]] = ("torch", "numba")
    # temporaries of a tiny model are a larger share of its peak than those of a real one
    memory_tolerance_frac: ClassVar[float] = 0.25

    def usual_stack(self, machine: Machine) -> str:
        """See `Workload.usual_stack`: eager PyTorch, which generates token by token too."""
        return "pytorch_cpu" if machine.accelerator is None else "pytorch_eager"

    def models(self) -> Iterable[str]:
        """See `Workload.models`: the presets."""
        return model_facts.model_names()

    def model_facts(self, name: str) -> Mapping[str, Any]:
        """See `Workload.model_facts`."""
        return model_facts.model_facts(name)

    def plan(self, parameters: Rlhf, machine: Machine, seed: int) -> Plan:
        """Return the phases of a campaign; see `sandtable_workloads.rlhf.rlhf_plan`.

        Raises:
            PlanError: it cannot be laid out.
            DoesNotFit: one device needs more memory than it has.
        """
        return plan_of(parameters, machine, rlhf_memory.check(parameters, machine, seed), seed)

    def prepare(self, parameters: Rlhf, machine: Machine, seed: int, context: ExecutionContext) -> None:
        """Check that this machine can do it, and take one step of everything.

        Raises:
            ConfigError: something that is simulated only.
            NoDevice: PyTorch is missing, or it sees no GPU where the machine has one.
        """
        from sandtable_workloads.rlhf import rlhf_run

        rlhf_run.prepare(parameters, machine, seed, context)

    def execute(self, parameters: Rlhf, machine: Machine, seed: int, context: ExecutionContext) -> Execution:
        """Run the campaign in PyTorch, and time every step."""
        from sandtable_workloads.rlhf import rlhf_run

        return rlhf_run.run_rlhf(parameters, machine, seed, context)

    def subject(self, parameters: Rlhf, machine: Machine) -> str:
        """Return the policy with its count of parameters, the reference, the iteration, and the devices."""
        p = parameters
        how = (
            "DPO"
            if p.method == "dpo"
            else f"PPO against the {'soup of ' + str(p.n_finetunings) if p.reference == 'soup' else 'SFT model'}"
        )
        work = f"{p.n_iterations} x {p.rollout_batch if p.method == 'ppo' else p.train_batch} samples"
        where = f"{p.devices} devices" if p.devices > 1 else "one device"
        return f"{describe(p.shape)}, {how}, {work}, {p.precision}, {where} {p.placement}"

    def derived(self, parameters: Rlhf, machine: Machine, known: Mapping[str, Metric]) -> dict[str, Metric]:
        """Return time and money of the whole campaign; see `sandtable_workloads.rlhf.rlhf_campaign`."""
        return rlhf_campaign.derived(parameters, machine, known)

    def bound(self, parameters: Rlhf, known: Mapping[str, Metric]) -> str:
        """See `Workload.bound`: the phase that takes most of the campaign."""
        return rlhf_campaign.bound(parameters, known)

    def caveats(self, parameters: Rlhf, machine: Machine) -> Sequence[str]:
        """Say what a campaign that was not described in full leaves out, and what was never measured here."""
        p, found = parameters, [*never_timed(machine)]
        if p.total_prompts is None and p.method == "ppo":
            found.append("one iteration alone: set parameters.total_prompts for a whole campaign")
        return found

    def estimate(self, parameters: Sequence[Rlhf], machine: Machine) -> Mapping[str, FloatArray]:
        """Return the time of a campaign, divided by its iterations, with its interval."""
        costs = CostModel(machine)
        rows = [_timed(p, machine, costs) for p in parameters]
        return {
            name: np.array([row[place] for row in rows]) for place, name in enumerate(("step_s", "low_s", "high_s"))
        }

    def faults(self, parameters: Sequence[Rlhf], machine: Machine) -> Sequence[str]:
        """Return why each campaign cannot be laid out."""
        return [rlhf_memory.fault_of(p, machine) for p in parameters]

    def verdicts(self, parameters: Sequence[Rlhf], machine: Machine) -> Sequence[Verdict]:
        """Return whether each fits, and which kind of memory passes the limit."""
        return [rlhf_memory.verdict_of(p, machine) for p in parameters]

    def what_fits(self, parameters: Rlhf, machine: Machine) -> Sequence[str]:
        """Return the mildest changes with which it fits."""
        return rlhf_memory.what_fits(parameters, machine)

    def example(self) -> dict[str, Any]:
        """Return tiny models, few prompts and short answers."""
        return {
            "model": "tiny_3x64",
            "reference": "soup",
            "precision": "float32",
            "batching": "shrinking",
            "logits": "answers",
            "padding": "end",
            "sft_samples": 16,
            "sft_batch": 8,
            "reward_pairs": 16,
            "reward_batch": 8,
            "rollout_batch": 8,
            "train_batch": 4,
            "micro_batch": 4,
            "prompt_tokens": 8,
            "answer_tokens": 12,
            "answer_mean_tokens": 6,
        }

    def examples(self) -> Sequence[dict[str, Any]]:
        """Return plain PPO with a value head, and rollouts in small batches."""
        small = self.example()
        return [
            small,
            small | {"reference": "sft", "critic": "shared", "lengths": "geometric", "ppo_epochs": 2},
            small | {"rollout_micro_batch": 2, "generation_batch": 3},
        ]


def _timed(p: Rlhf, machine: Machine, costs: CostModel) -> tuple[float, float, float]:
    """Return the time of a campaign divided by its iterations, and the ends of its interval."""
    found = run(plan_of(p, machine, {}, 0, rows_factor=COARSE), costs)
    low, high = found.ends_frac
    each = found.total_s / p.n_iterations
    return each, each * low, each * high
