"""Seconds of an iteration of PPO on 1024 prompts: OpenRLHF and DeepSpeed-Chat on A800s, as OpenRLHF published them.

The benchmark of 2024-03 states GPUs by model, micro-batches, and two phases: making experience (rollouts and scoring)
and training. The table of 2024-05 states GPUs in all and a total. It is taken for the same setting on more GPUs, in the
same proportion: 7B, 13B and 70B are as much faster as they have more GPUs. A guess: 34B is more than that, as if
rollouts came in micro-batches of 8 instead of 4, for which shards of the reference on four GPUs instead of one leave
room. Where all models share the GPUs, reference and reward model lie on the host, as in the benchmark's scripts of
DeepSpeed-Chat.

Prompts and answers may have 1024 tokens each. Answers are taken to have them: the benchmark's arithmetic does so too.
DeepSpeed-Chat pads every prompt to the limit (dschat/utils/data/data_utils.py, ``DataCollatorRLHF``). Those of OpenRLHF
are shorter: by guess 200 tokens in the mean, as in a log of the same prompts (OpenRLHF issue 762, 190 tokens). The rows
say neither, nor what the host was: their intervals hold what comes out with answers of half the length and 20 GB/s for
a rank's optimiser on the host, and with prompts at the limit and 5 GB/s, where its stack says 10.

OpenRLHF's scripts (examples/scripts/train_ppo_llama.sh @dbdd43b) keep the optimiser on the host where all models share
the GPUs too, whose memory holds them no other way.
DeepSpeed-Chat's hybrid engine, which generates with other kernels over gathered weights, is not described: weights read
once a token, keys and values, and the products of Q, K and V copied together at every step take some 20 ms on an A800,
and 590 s of rollouts in 8 rounds of 1024 tokens are 72 (OpenRLHF issue 327, where somebody else measured 40).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

from sandtable import units
from sandtable.engine.plan_process import process_of
from sandtable.hardware import Machine, library
from sandtable.published.adapter import Adapter, Outcome, Scored, Skipped
from sandtable.published.rows import Row
from sandtable.results import Metric
from sandtable.runs import predict
from sandtable.workload.seam import Scenario
from sandtable_workloads.rlhf.rlhf import RlhfWorkload
from sandtable_workloads.rlhf.rlhf_demand import CPU_OPTIMIZER
from sandtable_workloads.rlhf.rlhf_parameters import Rlhf
from sandtable_workloads.rlhf.rlhf_plan import plan_of

MACHINE = "server_8x_a800"
TOTAL, EXPERIENCE, TRAINING = "iteration_s", "experience_s", "training_s"
COLUMNS = {TOTAL: "total_s", EXPERIENCE: EXPERIENCE, TRAINING: TRAINING}
PARTS = {TOTAL: ("iteration_s",), EXPERIENCE: ("rollout_s", "scoring_s"), TRAINING: ("update_s", "weight_sync_s")}
PROMPT_MEAN_TOKENS = 200.0
# what the rows may mean instead: mean tokens, and what an optimiser on the host streams, in bytes a second
INSTEAD: tuple[tuple[dict[str, float], float | None], ...] = (
    ({}, None),
    ({"answer_mean_tokens": 512.0}, 20e9),
    ({"prompt_mean_tokens": 1024.0}, 5e9),
)
POOLS = ("reference", "reward", "critic", "generation")


class RlhfStepTimes(Adapter):
    """Iterations of PPO by size of the model."""

    name: ClassVar[str] = "rlhf_step_times"
    title: ClassVar[str] = "RLHF: seconds of an iteration on 1024 prompts, OpenRLHF and DeepSpeed-Chat on A800s"
    metrics: ClassVar[tuple[str, ...]] = (TOTAL, EXPERIENCE, TRAINING)

    def predict(self, row: Row) -> Outcome:
        """Predict the figures of one row."""
        if not row.text("stack"):
            return Skipped("hybrid engine is not described")
        own = parameters_of(row)
        found, *others = (
            _predicted(row.text("stack"), tuple(sorted((own | changed).items())), host) for changed, host in INSTEAD
        )
        return [self._scored(row, metric, found, others) for metric in self.metrics]

    def _scored(
        self, row: Row, metric: str, found: dict[str, Metric], others: Sequence[dict[str, Metric]]
    ) -> Scored | Skipped:
        measured = row.number(COLUMNS[metric])
        if measured is None:
            return Skipped("no such figure in the row", metric)
        value, low, high = _summed(found, metric)
        ends = [(low, high), *(_summed(other, metric)[1:] for other in others)]
        return Scored(
            row_id=f"line {row.line}",
            metric=metric,
            unit="s",
            predicted=value,
            low=min(low for low, _ in ends),
            high=max(high for _, high in ends),
            measured=measured,
            label=f"{row.text('software')}, {row.text('model')} on {row.text('gpus')} GPUs",
            group=f"{row.text('software')}, {row.text('group')}",
        )


def _summed(found: Mapping[str, Metric], metric: str) -> tuple[float, float, float]:
    """Return value, low and high of the sum of a metric's parts."""
    parts = [found[name] for name in PARTS[metric] if name in found]
    return sum(p.value for p in parts), sum(p.low for p in parts), sum(p.high for p in parts)


def parameters_of(row: Row) -> dict[str, Any]:
    """Return the parameters of the workload that a row describes."""
    pools = {f"{role}_devices": int(row.number(role) or 0) for role in POOLS}
    return {
        "model": row.text("model"),
        "devices": int(row.number("gpus") or 0),
        "batching": "continuous" if pools["generation_devices"] else "static",
        "placement": "separate" if pools["generation_devices"] else "colocated",
        "generation_tensor_parallel": int(row.number("generation_tensor_parallel") or 1),
        "rollout_micro_batch": int(row.number("rollout_micro_batch") or 1),
        "micro_batch": int(row.number("micro_batch") or 1),
        "sharding": row.text("sharding"),
        "offload_optimizer": row.text("offload"),
        "offload_scoring": row.text("software").startswith("DeepSpeed-Chat"),
        "checkpointing": "full",
        "prompt_mean_tokens": row.number("prompt_mean_tokens") or PROMPT_MEAN_TOKENS,
        **pools,
    }


@lru_cache(maxsize=64)
def _predicted(stack: str, values: tuple[tuple[str, Any], ...], host: float | None) -> dict[str, Metric]:
    """Return metrics of an iteration; a run that was published fitted, whatever is counted here."""
    workload, machine = RlhfWorkload(), _machine(stack, host)
    parameters = Rlhf.model_validate(dict(values), context=units.AT_EDGE)
    scenario = Scenario(name="row", title="row", workload=workload.name, machine=MACHINE, parameters=dict(values))
    process = process_of(plan_of(parameters, machine, {}, scenario.seed))
    return dict(predict.predict(scenario, workload, parameters, machine, process=process)[0].metrics)


def _machine(stack: str, host_bytes_per_s: float | None) -> Machine:
    """Return the benchmark's machine; where a rank's optimiser has a rate of its own, with this one if one is given."""
    machine = library.load_machine(MACHINE, {"stack": stack})
    if machine.stack is None or host_bytes_per_s is None:
        return machine
    sheet = machine.stack.datasheet
    if (own := sheet.efficiency.get(CPU_OPTIMIZER)) is None:
        return machine
    changed = own.model_copy(update={"bandwidth_bytes_per_s": host_bytes_per_s})
    sheet = sheet.model_copy(update={"efficiency": {**sheet.efficiency, CPU_OPTIMIZER: changed}})
    return machine.model_copy(update={"stack": machine.stack.model_copy(update={"datasheet": sheet})})
