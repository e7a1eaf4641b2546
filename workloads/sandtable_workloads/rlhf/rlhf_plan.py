"""The plan of a campaign for the engine: steps of fine-tuning and of the reward model, the soup, and PPO's iterations.

One device of each pool stands for its equals, and pools are queues that go on beside each other. In an iteration the
rollouts are generated; reference, reward model, critic and policy score them; policy and critic are trained on them,
beside each other where they have devices of their own; the engine gets the new weights. What generates apart may do so
for the next iteration while this one's rollouts are trained on. Compute, collectives and the host that issues go on
beside each other within a pass, and it ends when all have. Equal passes in a row are one op.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sandtable.demand.op import Op, Where, new_files
from sandtable.demand.plan import Phase, Plan, Step
from sandtable.hardware import Machine
from sandtable.model.cost_model import CostModel
from sandtable_workloads.rlhf.answer_lengths import Drawn, decode_steps, drawn, prompt_passes, slowest_engine
from sandtable_workloads.rlhf.rlhf_demand import (
    Engine,
    Passes,
    advantages,
    scoring_passes,
    training_passes,
    weight_sync,
)
from sandtable_workloads.rlhf.rlhf_parameters import Rlhf, Role
from sandtable_workloads.rlhf.soups.soup_demand import soup_ops
from sandtable_workloads.training.closed_form import Timer
from sandtable_workloads.training.states.offloading import Moves
from sandtable_workloads.training.step_demand import Demand
from sandtable_workloads.training.training_plan import BACKWARD, FORWARD, OPTIMIZER, Builder, op_of

SFT, REWARD, SOUP, ITERATION = "sft_step", "reward_step", "soup", "iteration"
ROLLOUT, SCORING, UPDATE, SYNC = "rollout", "scoring", "update", "weight_sync"
SECTIONS = (ROLLOUT, SCORING, UPDATE, SYNC)
# bytes of a parameter in a checkpoint
STORED_BYTES = {"float32": 4.0}
After = Sequence[int | None]


def plan_of(p: Rlhf, machine: Machine, memory: dict[str, float], seed: int, *, rows_factor: float = 1.0) -> Plan:
    """Return the plan of a whole campaign; all iterations have the lengths that are drawn for one.

    ``rows_factor`` as in `decode_steps`.
    """
    lengths = drawn(p, seed)
    iteration = _Iteration(p, machine, lengths, rows_factor).ops()
    phases = [*_before(p, machine, lengths), _phase(ITERATION, iteration, p.n_iterations)]
    return Plan(
        workload="rlhf",
        phases=tuple(phases),
        main_phase=ITERATION,
        memory_bytes=memory,
        work_unit="iteration",
        unit_metric="iteration_s",
    )


def _phase(name: str, ops: Sequence[Op], times: int) -> Phase:
    return Phase(name=name, steps=(Step(name=name, ops=tuple(ops), repeat=times),))


def _before(p: Rlhf, machine: Machine, lengths: Drawn) -> list[Phase]:
    """Return what comes before PPO: on all devices together, one after the other."""
    found = []
    if p.sft_steps:
        tokens = p.sft_tokens or p.sequence_tokens
        passes = training_passes(p, machine, "policy", batch=p.sft_batch, tokens=tokens, devices=p.devices)
        found.append(_phase(SFT, _alone(machine, passes, SFT), p.n_finetunings * p.sft_steps))
    if p.reward_steps:
        passes = reward_passes(p, machine, lengths)
        found.append(_phase(REWARD, _alone(machine, passes, REWARD), p.reward_steps))
    if p.reference == "soup" and p.method == "ppo":
        stored = STORED_BYTES.get(p.precision, 2.0)
        ops = soup_ops(float(p.shape.n_params), p.n_finetunings, in_bytes=stored, out_bytes=stored)
        # nothing but that, for a tiny model
        files = replace(new_files("make soup's file", n_files=1), after=tuple(range(len(ops))))
        found.append(_phase(SOUP, (*ops, files), 1))
    return found


def reward_passes(p: Rlhf, machine: Machine, lengths: Drawn) -> Passes:
    """Return the passes of a step of the reward model: both answers of each pair."""
    tokens = padded(p, lengths, p.micro_batch)
    return training_passes(p, machine, "reward", batch=2 * p.reward_batch, tokens=tokens, devices=p.devices)


def padded(p: Rlhf, lengths: Drawn, batch: int) -> int:
    """Return the tokens that a sequence takes in a pass over ``batch`` of them, padding included."""
    size = min(batch, p.rollout_batch)
    return round(lengths.mean if p.packing else lengths.padded(size, both=p.padding == "both"))


def answer_frac(p: Rlhf, lengths: Drawn, tokens: int) -> float:
    """Return the part of ``tokens`` a sequence that logits are made of."""
    return min(1.0, float(lengths.answers.mean()) / tokens) if p.logits == "answers" else 1.0


def _alone(machine: Machine, passes: Passes, section: str) -> list[Op]:
    track = Track(machine, section=section)
    track.train(passes, 1, [])
    return track.builder.ops


# --- passes as ops -----------------------------------------------------------------------------------------------


@dataclass
class Track:
    """Adds passes as ops of one pool and section; methods return what must be done before anything else.

    ``background`` work goes on beside another section, and counts as its own only where that has to wait for it.
    """

    machine: Machine
    section: str
    pool: str = ""
    background: bool = False
    builder: Builder = field(default_factory=Builder)

    def train(self, passes: Passes, n_steps: int, after: After) -> list[int]:
        """Add ``n_steps`` optimiser steps, equal passes of them together."""
        n, moved = n_steps * passes.n_micro, passes.moved or Moves(forward_s=0.0, backward_s=0.0, optimizer_s=0.0)
        done = self._pass(FORWARD, passes, passes.forward, passes.sent_forward, n, float(moved.forward_s), after)
        done = self._pass(
            BACKWARD, passes, passes.backward, passes.sent_backward, n, float(moved.backward_s), done, part=BACKWARD
        )
        done = self._chain("gradient sum", passes.between, n - n_steps, passes.sharing, done)
        done = self.wait("gradients added", passes.between_s * (n - n_steps), "offload", done)
        # gradients of the last micro-batch alone are reduced behind its backward pass
        done = self.send(passes.sent_step, n_steps, done)
        if moved.optimizer_s:
            return self.wait("update elsewhere", float(moved.optimizer_s) * n_steps, "offload", done)
        return self._chain(OPTIMIZER, passes.optimizer, n_steps, passes.sharing, done, part=OPTIMIZER)

    def score(self, passes: Passes, name: str, after: After) -> list[int]:
        """Add forward passes alone; weights that lie elsewhere come once for all of them."""
        done = self._pass(name, passes, passes.forward, passes.sent_forward, passes.n_micro, 0.0, after)
        away_s = 0.0 if passes.moved is None else float(passes.moved.forward_s)
        return [*done, *self.wait(f"{name} weights", away_s, "offload", after)]

    def work(self, name: str, demands: Sequence[Demand], after: After) -> list[int]:
        """Add work that is done once, as its host issues it."""
        return [
            *self._chain(name, demands, 1, 1, after),
            *self.wait("issue", self._issue_s(demands), "issue", after),
        ]

    def send(self, sent: Sequence[Demand], times: int, after: After) -> list[int]:
        """Add collectives, one after the other, beside whatever computes."""
        done = [index for index in after if index is not None]
        for op in self._some(sent, 1):
            done = [self.builder.add(replace(op, repeat=op.repeat * times, stream=f"{self.pool} data"), done)]
        return done

    def wait(self, name: str, seconds: float, stream: str, after: After) -> list[int]:
        """Add what takes so many seconds on a queue of its own."""
        if seconds <= 0:
            return [index for index in after if index is not None]
        op = Op(
            name=name,
            operator="startup",
            account="communication" if stream == "offload" else "compute",
            seconds=seconds,
            on=self.on,
            stream=f"{self.pool} {stream}",
            section=self.section,
            background=self.background,
        )
        return [self.builder.add(op, after)]

    def _pass(
        self,
        name: str,
        passes: Passes,
        demands: Sequence[Demand],
        sent: Sequence[Demand],
        n: int,
        away_s: float,
        after: After,
        part: str = FORWARD,
    ) -> list[int]:
        """Add ``n`` equal passes: computing, with what is sent, moved and issued beside it."""
        done = self._chain(name, demands, n, passes.sharing, after, part)
        if not passes.overlaps:
            return self.send(sent, n, done)
        beside = [self.send(sent, n, after), self.wait("moved beside", away_s * n, "offload", after)]
        issued = self.wait("issue", self._issue_s(demands) * n, "issue", after)
        return sorted({*done, *issued, *(index for indices in beside for index in indices)})

    def _issue_s(self, demands: Sequence[Demand]) -> float:
        return float(Timer(CostModel(self.machine), 1).issue(demands).sum()) if demands else 0.0

    def _chain(
        self, name: str, demands: Sequence[Demand], times: int, sharing: int, after: After, part: str = ""
    ) -> list[int]:
        parts = self._some(demands, sharing, part)
        if not parts or times < 1:
            return [index for index in after if index is not None]
        op = Op(name=name, operator="sequence", account="compute", parts=parts, on=self.on, section=self.section)
        return [self.builder.add(replace(op, repeat=times, stream=self.pool, background=self.background), after)]

    def _some(self, demands: Sequence[Demand], sharing: int, part: str = "") -> tuple[Op, ...]:
        found = (op_of(demand, self.on, self.section, sharing, part) for demand in demands)
        return tuple(op for op in found if op is not None)

    @property
    def on(self) -> Where:
        """Which processor computes."""
        return "host" if self.machine.accelerator is None else "accelerator"

    # --- generation ---

    def generate(self, p: Rlhf, lengths: Drawn, rows_factor: float, after: After) -> list[int]:
        """Add the rollouts of the engine that ends last: passes over prompts, then steps of ever fewer rows."""
        engine, rounds = Engine(p, self.machine), slowest_engine(p, lengths)
        n_passes, batch, tokens = prompt_passes(p, lengths, rounds)
        prompts = engine.prompts(batch, tokens)
        done = self._engine_steps(engine, "prompts", prompts, n_passes, batch, after, part=FORWARD)
        slots = p.generation_batch
        for steps in decode_steps(lengths, rounds, slots, batching=p.batching, rows_factor=rows_factor):
            demands = engine.decode(steps.rows, steps.context)
            done = self._engine_steps(engine, "decode", demands, steps.n_steps, steps.rows, done)
            waits_s = engine.waits_s(steps.rows, steps.context)
            done = self.wait("host and device wait", waits_s * steps.n_steps, "issue", done)
        return done

    def _engine_steps(
        self,
        engine: Engine,
        name: str,
        demands: Sequence[Demand],
        n: int,
        rows: float,
        after: After,
        part: str = "",
    ) -> list[int]:
        done = self._chain(name, demands, n, 1, after, part)
        done += self.wait("issue", engine.issue_s(demands) * n, "issue", after)
        return self.wait("between steps", engine.between_s(rows) * n, "issue", done)


class _Iteration:
    """One iteration of PPO, or one step of DPO."""

    def __init__(self, p: Rlhf, machine: Machine, lengths: Drawn, rows_factor: float) -> None:
        self.p, self.machine, self.lengths, self.rows_factor = p, machine, lengths, rows_factor
        self.longest = int(lengths.answers.max())
        self.builder = Builder()

    def ops(self) -> list[Op]:
        """Return the ops of the iteration."""
        p = self.p
        if p.method == "dpo":
            done = self._score("reference", 2 * p.train_batch, [])
            self._update("policy", 2 * p.train_batch, done)
            return self.builder.ops
        rollouts = self._on("generation", ROLLOUT).generate(p, self.lengths, self.rows_factor, [])
        # the rollouts that are trained on meanwhile were made in the iteration before
        ready = [] if p.placement == "async" else rollouts
        scored = [index for role in p.roles for index in self._score(role, p.rollout_batch, ready)]
        scored = self._on("policy", SCORING).work("advantages", advantages(p, self.machine, self.longest), scored)
        updated = [
            index
            for role in p.roles
            if role in ("policy", "critic")
            for index in self._update(role, p.train_batch, scored)
        ]
        self._sync([*updated, *rollouts])
        return self.builder.ops

    def _on(self, role: Role, section: str) -> Track:
        pool = role if self.p.is_apart(role) else ""
        ahead = section == ROLLOUT and self.p.placement == "async"
        return Track(self.machine, section, pool, background=ahead, builder=self.builder)

    def _score(self, role: Role, sequences: int, after: After) -> list[int]:
        p = self.p
        micro = p.rollout_micro_batch or p.scoring_micro_batch or p.micro_batch
        tokens = padded(p, self.lengths, micro)
        made = answer_frac(p, self.lengths, tokens)
        passes = scoring_passes(
            p, self.machine, role, sequences=sequences, micro=micro, tokens=tokens, answer_frac=made
        )
        track, n = self._on(role, SCORING), passes.n_micro
        meanwhile = n - math.ceil(n / self._askers(role)) if after else 0
        if not meanwhile:
            return track.score(passes, role, after)
        beside = replace(track, background=True).score(replace(passes, n_micro=meanwhile), role, [])
        return track.score(replace(passes, n_micro=n - meanwhile), role, [*beside, *after])

    def _askers(self, role: Role) -> int:
        """Return how many ranks of the policy take turns with one of a role's, each waiting for its own batch alone.

        Where each generates and has scored one batch after the other, and their forward passes gather no weights from
        each other, one rank's batch is scored while others generate.
        """
        p = self.p
        if p.rollout_micro_batch is None or not p.is_apart(role) or p.sharding == "fsdp_full":
            return 1
        return max(1, p.ranks_of("policy") // p.ranks_of(role))

    def _update(self, role: Role, batch: int, after: After) -> list[int]:
        p = self.p
        tokens = padded(p, self.lengths, p.micro_batch)
        made = answer_frac(p, self.lengths, tokens)
        passes = training_passes(p, self.machine, role, batch=batch, tokens=tokens, answer_frac=made)
        return self._on(role, UPDATE).train(passes, p.updates, after)

    def _sync(self, after: After) -> None:
        demands, software_s = weight_sync(self.p, self.machine)
        track = self._on("policy", SYNC)
        track.wait("tensor by tensor", software_s, "data", track.send(demands, 1, after))
