"""What PPO must take: equal iterations for both references, what a soup adds, and times that follow from others."""

from __future__ import annotations

from typing import Any

import pytest

from sandtable import units
from sandtable.demand.op import Op
from sandtable.demand.plan import Plan
from sandtable.engine.simulation import Run, run
from sandtable.hardware import Machine, library
from sandtable.model.cost_model import CostModel
from sandtable.results import Metric
from sandtable.runs import predict
from sandtable.workload import scenarios
from sandtable_workloads.rlhf import rlhf_campaign
from sandtable_workloads.rlhf.answer_lengths import decode_steps, drawn, slowest_engine
from sandtable_workloads.rlhf.rlhf_demand import Engine, training_passes
from sandtable_workloads.rlhf.rlhf_parameters import Rlhf
from sandtable_workloads.rlhf.rlhf_plan import ITERATION, SECTIONS, SFT, SOUP, Track, plan_of
from sandtable_workloads.training.closed_form import Timer
from sandtable_workloads.training.slm_training import estimate
from sandtable_workloads.training.training_plan import op_of

BASE: dict[str, Any] = {"model": "llama_2_7b", "rollout_batch": 64, "train_batch": 32, "prompt_tokens": 128}
DRAWN = {"answer_tokens": 128, "answer_mean_tokens": 60}


def campaign(**changes: Any) -> Rlhf:
    return Rlhf.model_validate(BASE | DRAWN | changes, context=units.AT_EDGE)


@pytest.fixture(scope="module")
def a100() -> Machine:
    return library.load_machine("dgx_a100_80gb", {"stack": "openrlhf"})


def played(p: Rlhf, machine: Machine, seed: int = 1) -> Run:
    return run(plan_of(p, machine, {}, seed), CostModel(machine))


def iteration(found: Run) -> dict[str, float]:
    table = found.recorder.units[ITERATION].table()
    return {name: float(column[0]) for name, column in table.items() if name != "name"}


# --- the reference ---------------------------------------------------------------------------------------------------


def metrics_of(**settings: Any) -> dict[str, Metric]:
    changes = scenarios.changes_of([f"parameters.{name}={value}" for name, value in settings.items()])
    case = scenarios.load("salsa_llama2_7b", changes=changes)
    return dict(predict.predict(case.scenario, case.workload, case.parameters, case.machine)[0].metrics)


def test_an_iteration_takes_as_long_whichever_model_is_the_reference(a100: Machine) -> None:
    soup, sft = (played(campaign(reference=kind), a100) for kind in ("soup", "sft"))
    assert iteration(soup)["latency_s"] == iteration(sft)["latency_s"]


def test_a_soup_adds_one_fine_tuning_and_one_averaging_pass_and_no_more() -> None:
    soup, plain = metrics_of(reference="soup"), metrics_of(reference="sft")
    usd_per_s = soup["usd_per_h"].value / 3600
    one_sft = 1563 * soup["sft_step_s"].value
    wanted = usd_per_s * (one_sft + soup["soup_s"].value)
    assert soup["soup_adds_usd"].value == pytest.approx(wanted)
    assert soup["campaign_usd"].value - plain["campaign_usd"].value == pytest.approx(wanted, rel=1e-6)
    assert "soup_adds_usd" not in plain
    assert "soup_s" not in plain


def test_the_averaging_pass_reads_all_and_writes_one(a100: Machine) -> None:
    plan = plan_of(campaign(reference="soup", n_sft=3), a100, {}, 1)
    moved = [op for op in plan.phase(SOUP).steps[0].ops if op.resource == "storage"]
    n = campaign().shape.n_params
    assert sum(op.bytes_read for op in moved) == 3 * 2 * n
    assert sum(op.bytes_written for op in moved) == 2 * n


# --- generation ------------------------------------------------------------------------------------------------------


def seconds_of(engine: Engine, costs: CostModel, rows: float, context: float) -> float:
    ops = (op_of(demand, "accelerator", "") for demand in engine.decode(rows, context))
    return sum(costs.time(op).seconds for op in ops if op is not None) + engine.between_s(rows)


def test_steps_put_together_take_what_they_take_one_by_one(a100: Machine) -> None:
    p = campaign(answer_tokens=400, answer_mean_tokens=150)
    lengths, engine, costs = drawn(p, 5), Engine(p, a100), CostModel(a100)
    rounds = slowest_engine(p, lengths)
    together = sum(n * seconds_of(engine, costs, rows, seen) for n, rows, seen in decode_steps(lengths, rounds, 16))
    alone = 0.0
    for places in rounds:
        waiting = [(int(lengths.prompts[i]), int(lengths.answers[i]) - 1) for i in places]
        running: list[list[int]] = []
        while waiting or running:
            while waiting and len(running) < 16:
                prompt, left = waiting.pop(0)
                running += [[prompt, left]] if left else []
            for row in running:
                row[0], row[1] = row[0] + 1, row[1] - 1
            alone += seconds_of(engine, costs, len(running), sum(row[0] for row in running) / len(running))
            running = [row for row in running if row[1]]
    assert together == pytest.approx(alone, rel=5e-3)


def test_a_step_takes_at_least_what_reading_weights_and_cache_takes(a100: Machine) -> None:
    p, costs = campaign(), CostModel(a100)
    bandwidth = a100.accelerator.memory.datasheet.bandwidth_bytes_per_s  # type: ignore[union-attr]
    for rows, context in ((1, 64), (32, 512), (128, 1024)):
        read = 2 * p.shape.matmul_params + rows * p.shape.kv_bytes(context, "bfloat16")
        took = seconds_of(Engine(p, a100), costs, rows, context)
        assert read / bandwidth < took < 3 * read / bandwidth + 5e-3


def test_eager_software_pays_for_every_kernel_of_a_step(a100: Machine) -> None:
    eager = library.load_machine("dgx_a100_80gb", {"stack": "pytorch_eager"})
    p = campaign(rollout_batch=2, train_batch=2)
    assert iteration(played(p, eager))["rollout_s"] > 1.5 * iteration(played(p, a100))["rollout_s"]


def test_a_host_that_waits_in_every_layer_adds_to_the_device_and_never_more_than_both() -> None:
    machine = library.load_machine("server_8x_a800", {"stack": "openrlhf_transformers"})
    engine = Engine(campaign(batching="static"), machine)
    for rows in (1.0, 16.0, 256.0):
        demands = engine.decode(rows, 1024.0)
        works, issued = float(Timer(CostModel(machine), 1).seconds([demands])[0][0]), engine.issue_s(demands)
        assert 0 < engine.waits_s(rows, 1024.0) < min(works, issued)
    assert Engine(campaign(), library.load_machine("server_8x_a800")).waits_s(16.0, 1024.0) == 0


def test_a_cache_that_is_copied_and_unpadded_is_moved_three_times_over() -> None:
    moved = {}
    for stack in ("pytorch_eager", "openrlhf_transformers"):
        engine = Engine(campaign(), library.load_machine("server_8x_a800", {"stack": stack}))
        cache = [d for d in engine.decode(8.0, 512.0) if d.name.startswith("cache")]
        moved[stack] = sum(d.shape.n_bytes * d.times for d in cache)
    # 32 layers of keys and values of 4096 in two bytes, read and written once
    assert moved["pytorch_eager"] == 2 * 8 * 512 * 32 * 2 * 4096 * 2
    assert moved["openrlhf_transformers"] == 3 * moved["pytorch_eager"]


def test_fewer_key_heads_are_repeated_before_they_are_attended_to() -> None:
    machine = library.load_machine("server_8x_a800", {"stack": "pytorch_eager"})
    demands = Engine(campaign(model="mistral_7b"), machine).decode(8.0, 512.0)
    cache = {d.name: d.shape.n_bytes for d in demands if d.name.startswith("cache")}
    assert cache["cache repeat"] == 4 * cache["cache copy"]


def test_an_optimiser_on_the_host_clips_and_rounds_beside_adam(a100: Machine) -> None:
    p = campaign(devices=2, sharding="fsdp_grad_op", offload_optimizer="host")
    moved = training_passes(p, a100, "policy", batch=32, tokens=256).moved
    assert moved is not None
    # one rank's half of the parameters: gradients and three float32 numbers read, these written, gradients clipped in
    # place, weights rounded to two bytes; at the 10 GB/s that the stack states
    state_bytes = 4 * 4 + 3 * 4 + 2
    assert float(moved.optimizer_s) == pytest.approx(p.shape.n_params / 2 * (state_bytes + 8 + 6) / 10e9, rel=0.1)


def test_a_batch_is_scored_while_other_ranks_generate(a100: Machine) -> None:
    pools = {"devices": 8, "placement": "separate", "sharding": "fsdp_grad_op", "generation_devices": 2}
    pools |= {"reference_devices": 1, "reward_devices": 1, "critic_devices": 2}
    together, in_turn = (
        iteration(played(campaign(**pools, rollout_micro_batch=n, scoring_micro_batch=8), a100)) for n in (None, 8)
    )
    # two ranks of the policy take turns with one of the reference: each waits for half of what that scores
    assert in_turn["scoring_s"] == pytest.approx(together["scoring_s"] / 2, rel=0.05)


def test_engines_share_the_prompts_but_each_reads_all_weights(a100: Machine) -> None:
    one, four = (iteration(played(campaign(devices=n, rollout_batch=256), a100))["rollout_s"] for n in (1, 4))
    assert one / 4 < four < one


# --- training and scoring --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"checkpointing": "full"}, {"devices": 8, "sharding": "fsdp_full"}])
def test_an_update_takes_as_long_as_a_step_of_training(a100: Machine, changes: dict[str, Any]) -> None:
    p = campaign(micro_batch=4, **changes)
    track = Track(a100, "update")
    track.train(training_passes(p, a100, "policy", batch=32, tokens=256), 1, [])
    costs, ops = CostModel(a100), track.builder.ops
    longest: dict[int, float] = {}
    for index, op in enumerate(ops):
        before = max((longest[i] for i in op.after or ()), default=0.0)
        longest[index] = before + costs.time(op).seconds
    whole = p.training("policy", batch=32, tokens=256)
    assert max(longest.values()) == pytest.approx(float(estimate([whole], a100)["step_s"][0]), rel=0.08)


def test_parts_of_an_iteration_add_up(a100: Machine) -> None:
    found = iteration(played(campaign(devices=2, sharding="fsdp_full"), a100))
    parts = sum(found.get(f"{name}_s", 0.0) for name in SECTIONS)
    assert parts == pytest.approx(found["latency_s"], rel=1e-6)


def test_epochs_multiply_updates_alone(a100: Machine) -> None:
    once, twice = (iteration(played(campaign(ppo_epochs=n), a100)) for n in (1, 2))
    assert twice["update_s"] == pytest.approx(2 * once["update_s"], rel=1e-6)
    assert twice["rollout_s"] == once["rollout_s"]


def test_logits_of_answers_alone_save_the_rest_of_the_head(a100: Machine) -> None:
    every, few = (iteration(played(campaign(model="gemma_2b", logits=kind), a100)) for kind in ("all", "answers"))
    assert few["scoring_s"] < every["scoring_s"]
    assert few["update_s"] < every["update_s"]
    assert few["rollout_s"] == pytest.approx(every["rollout_s"])


def test_rows_that_have_ended_are_decoded_on_where_batches_are_static(a100: Machine) -> None:
    kinds = ("continuous", "shrinking", "static")
    found = [iteration(played(campaign(batching=kind), a100))["rollout_s"] for kind in kinds]
    assert found == sorted(found)
    assert found[0] < found[2]


def test_a_value_head_needs_no_critic(a100: Machine) -> None:
    own, shared = (iteration(played(campaign(critic=kind), a100)) for kind in ("own", "shared"))
    assert shared["update_s"] == pytest.approx(own["update_s"] / 2, rel=0.1)
    assert shared["scoring_s"] == pytest.approx(own["scoring_s"] * 3 / 4, rel=0.1)


# --- placement -------------------------------------------------------------------------------------------------------

APART = {"devices": 4, "placement": "separate", "generation_devices": 2, "sharding": "fsdp_full"}


def test_generation_ahead_is_seen_only_while_training_waits_for_it(a100: Machine) -> None:
    turns, ahead = (
        iteration(played(campaign(**APART | {"placement": kind}), a100)) for kind in ("separate", "async")
    )
    generation = turns["rollout_s"]
    rest = turns["latency_s"] - generation
    assert ahead["latency_s"] == pytest.approx(
        max(generation, rest - turns["weight_sync_s"]) + turns["weight_sync_s"], rel=0.02
    )
    assert ahead.get("rollout_s", 0.0) <= generation
    assert ahead["latency_s"] < turns["latency_s"]


def test_models_with_devices_of_their_own_score_beside_each_other(a100: Machine) -> None:
    pools = {"critic_devices": 1, "reference_devices": 1, "reward_devices": 1}
    apart = iteration(played(campaign(devices=4, **pools), a100))
    alone = iteration(played(campaign(devices=1), a100))
    assert apart["scoring_s"] == pytest.approx(alone["scoring_s"] / 4, rel=0.1)
    assert apart["update_s"] == pytest.approx(alone["update_s"] / 2, rel=0.1)


def test_weights_go_to_engines_tensor_by_tensor(a100: Machine) -> None:
    gathered = iteration(played(campaign(**APART), a100))["weight_sync_s"]
    # OpenRLHF issue 647 and vLLM issue 5723: 20 to 40 s for 8B where weights are gathered one by one
    assert 20 < gathered < 40
    whole = iteration(played(campaign(**APART | {"sharding": "ddp"}), a100))["weight_sync_s"]
    assert 5 < whole < 8


# --- campaign --------------------------------------------------------------------------------------------------------


def test_a_campaign_is_the_sum_of_its_phases() -> None:
    found = metrics_of(total_prompts=5000)
    steps = {"sft_step_s": 2 * 1563, "reward_step_s": 938, "soup_s": 1, "iteration_s.mean": 5}
    assert found["campaign_s"].value == pytest.approx(sum(n * found[name].value for name, n in steps.items()))
    assert found["campaign_s"].low < found["campaign_s"].value < found["campaign_s"].high
    assert found["campaign_usd"].value == pytest.approx(found["campaign_s"].value / 3600 * found["usd_per_h"].value)


def test_dpo_trains_on_pairs_after_one_fine_tuning(a100: Machine) -> None:
    plan = plan_of(campaign(method="dpo", sft_samples=256, reward_pairs=320), a100, {}, 1)
    assert [phase.name for phase in plan.phases] == [SFT, ITERATION]
    assert plan.phase(ITERATION).n_steps == 10
    assert plan.phase(SFT).n_steps == 2
    found = iteration(played(campaign(method="dpo"), a100))
    # a reference's pass over as many tokens takes a third of a step that computes nothing again
    assert found["scoring_s"] == pytest.approx(found["update_s"] / 3, rel=0.25)
    assert "rollout_s" not in found


def test_what_bounds_a_campaign_is_named() -> None:
    p = campaign(total_prompts=640)
    known = {
        name: Metric(value=value, low=value, high=value, unit="s")
        for name, value in (("iteration_s", 10.0), ("rollout_s", 7.0), ("scoring_s", 1.0), ("update_s", 2.0))
    }
    assert rlhf_campaign.bound(p, known) == "Bound by rollout, 70 % of the campaign (update 20 %, scoring 10 %)."


def leaves(plan: Plan) -> list[Op]:
    return [op for op, _ in plan.ops()]


def test_every_op_of_a_plan_has_a_law_that_reads_it(a100: Machine) -> None:
    costs = CostModel(a100)
    for changes in ({"adapter": "lora", "precision": "bfloat16"}, {"model": "mixtral_8x7b"}, {"model": "gemma_2b"}):
        ops = leaves(plan_of(campaign(**changes), a100, {}, 1))
        assert all(costs.time(op).seconds >= 0 for op in ops)
