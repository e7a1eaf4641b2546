"""Fine-tuning by counting: what is frozen costs less, packed weights cost less, longer sequences cost more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable.engine.simulation import run
from sandtable.errors import ConfigError, DoesNotFit, PlanError
from sandtable.hardware import Machine, library
from sandtable.model.cost_model import CostModel
from sandtable.results import Metric
from sandtable.studies.cheapest import search
from sandtable_workloads.finetuning import finetuning_memory as memory
from sandtable_workloads.finetuning import finetuning_times as times_of
from sandtable_workloads.finetuning.finetuning import FinetuningWorkload
from sandtable_workloads.finetuning.finetuning_parameters import Finetuning
from sandtable_workloads.training.slm_training import SlmTrainingWorkload
from sandtable_workloads.training.training_parameters import SlmTraining

MODELS = ["pythia_410m", "llama_2_7b", "llama_2_70b", "falcon_7b", "phi_1_5"]
ADAPTERS = ["lora", "adapter", "adapter_v2"]


def case(model: str = "llama_2_7b", **changes: Any) -> Finetuning:
    base = {"adapter": "lora", "precision": "bfloat16", "micro_batch": 1, "sequence_tokens": 512}
    return Finetuning(model=model, **(base | changes))


def held(p: Finetuning) -> float:
    return sum(memory.memory_of(p, p.shape).values())


def full_states(p: Finetuning) -> float:
    """Weights, gradients and two moments of all weights in bfloat16, without any activation."""
    return 8.0 * p.shape.n_params


@pytest.fixture(scope="module")
def machine() -> Machine:
    return library.load_machine("dgx_a100_40gb", {"stack": "litgpt"})


@pytest.mark.parametrize(
    ("model", "adapter", "count"),
    [
        # printed by the source for these models: Lightning-AI/litgpt tutorials/resource-tables.md
        ("stablelm_alpha_3b", "lora", 2_097_152),
        ("stablelm_alpha_3b", "adapter", 573_888),
        ("stablelm_alpha_3b", "adapter_v2", 2_125_248),
        ("llama_2_13b", "lora", 6_553_600),
    ],
)
def test_trained_weights_are_those_that_the_source_prints(model: str, adapter: str, count: int) -> None:
    p = case(model, adapter=adapter)
    assert memory.trainable_params(p, p.shape) == count


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("model", MODELS)
def test_an_adapter_holds_less_than_the_states_of_full_training(model: str, adapter: str) -> None:
    p = case(model, adapter=adapter, sequence_tokens=256)
    assert held(p) < full_states(p)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("model", MODELS)
def test_packed_weights_hold_less_and_packed_scales_less_again(model: str, adapter: str) -> None:
    wide, packed, nested = (
        memory.base_bytes(p, p.shape)
        for p in (case(model, adapter=adapter, quantization=q) for q in ("none", "nf4", "nf4_dq"))
    )
    assert nested < packed < wide
    short = {"adapter": adapter, "sequence_tokens": 64}
    if model.startswith("llama"):
        assert held(case(model, quantization="nf4", **short)) < held(case(model, **short))


def test_packed_weights_approach_half_a_byte_and_their_scales() -> None:
    p = case("llama_2_70b", quantization="nf4_dq")
    packed = memory.base_bytes(p, p.shape) / p.shape.n_params
    assert 0.5 + 1 / 64 < packed < 0.53


@given(
    model=st.sampled_from(MODELS),
    adapter=st.sampled_from(ADAPTERS),
    quantization=st.sampled_from(["none", "nf4", "nf4_dq"]),
    tokens=st.integers(16, 4000),
    more=st.integers(1, 4000),
)
def test_memory_grows_with_the_sequence(
    model: str, adapter: str, quantization: str, tokens: int, more: int
) -> None:
    short, long = (
        case(model, adapter=adapter, quantization=quantization, sequence_tokens=n) for n in (tokens, tokens + more)
    )
    assert held(short) < held(long)


@given(model=st.sampled_from(MODELS), tokens=st.integers(200, 2000), batch=st.integers(2, 8))
def test_activations_are_proportional_to_the_batch(model: str, tokens: int, batch: int) -> None:
    one, many = (case(model, sequence_tokens=tokens, micro_batch=b) for b in (1, batch))
    frozen = memory.base_bytes(one, one.shape) + 8 * memory.trainable_params(one, one.shape)
    assert held(many) - frozen == pytest.approx(batch * (held(one) - frozen), rel=1e-9)


@given(rank=st.integers(1, 512))
def test_weights_of_lora_are_proportional_to_its_rank(rank: int) -> None:
    one, many = case(lora_rank=1), case(lora_rank=rank)
    assert memory.trainable_params(many, many.shape) == rank * memory.trainable_params(one, one.shape)


def test_sharding_keeps_whole_gradients_while_it_accumulates() -> None:
    sharded: dict[str, Any] = {"sharding": "fsdp_full", "checkpointing": "full", "sequence_tokens": 64}
    shape = case().shape
    once, often = (
        memory.memory_of(case(devices=8, grad_accumulation=n, **sharded), shape)["gradients"] for n in (1, 16)
    )
    assert often > 2 * (shape.n_params - shape.embedding_params)
    assert once < often / 7


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("model", ["pythia_410m", "llama_2_7b"])
def test_packed_products_and_more_tokens_take_longer(model: str, adapter: str, machine: Machine) -> None:
    shape = case(model).shape
    times = [
        times_of.iteration_s(case(model, adapter=adapter, quantization=q, sequence_tokens=t), shape, machine)[
            "step_s"
        ]
        for q, t in (("none", 128), ("nf4", 128), ("nf4_dq", 128), ("nf4_dq", 2048))
    ]
    assert times == sorted(times)
    assert times[0] < times[2] < times[3]


def test_a_long_sequence_is_bound_by_the_device(machine: Machine) -> None:
    shape = case().shape
    once, twice = (
        times_of.iteration_s(case(micro_batch=b, sequence_tokens=2048), shape, machine)["step_s"] for b in (4, 8)
    )
    assert 1.8 < twice / once < 2.05


def test_a_short_one_is_bound_by_the_host(machine: Machine) -> None:
    shape = case("pythia_410m").shape
    short, longer = (
        times_of.iteration_s(case("pythia_410m", sequence_tokens=t), shape, machine)["step_s"] for t in (16, 64)
    )
    assert longer < 1.01 * short


def test_frozen_weights_of_flat_parameters_get_gradients(machine: Machine) -> None:
    long: dict[str, Any] = {"sequence_tokens": 2048, "micro_batch": 4}
    sharded: dict[str, Any] = {"sharding": "fsdp_full", "checkpointing": "none", "devices": 8}
    shape = case().shape
    alone = times_of.iteration_s(case(**long), shape, machine)["backward_s"]
    flat = times_of.iteration_s(case(**long, **sharded), shape, machine)["backward_s"]
    assert 1.3 < flat / alone < 2.2


def test_decoding_is_bound_by_layers_not_by_bytes(machine: Machine) -> None:
    small, large = (
        times_of.token_s(case(m), case(m).shape, machine)["token_s"] for m in ("llama_2_7b", "llama_2_13b")
    )
    assert large / small == pytest.approx(40 / 32, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": "float32"}, "pure bfloat16"),
        ({"sharding": "fsdp_full", "devices": 2, "quantization": "nf4"}, "not sharded"),
        ({"model": "mixtral_8x7b"}, "experts"),
    ],
)
def test_what_is_not_described_is_refused(changes: dict[str, Any], words: str) -> None:
    p = case(**changes)
    with pytest.raises(PlanError, match=words):
        memory.check(p, p.shape)


def test_packed_weights_cannot_be_trained() -> None:
    with pytest.raises(ValueError, match="packed weights cannot be trained"):
        Finetuning(adapter="none", quantization="nf4")


@pytest.mark.parametrize("field", ["adapter", "lora_rank", "lora_targets", "quantization"])
def test_training_of_all_weights_knows_no_adapter(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: .* write 'workload: finetuning'"):
        SlmTraining.model_validate({field: "lora"})


# --- LoRA on more products -----------------------------------------------------------------------------------------


def test_lora_on_every_product_trains_a_pair_for_each() -> None:
    shape, rank = case().shape, 4
    every = case(lora_rank=rank, lora_targets=("query", "key", "value", "output", "up", "down"))
    d, n, layers = shape.d_model, shape.n_neurons, shape.n_layers
    pairs = [(d, d), (d, d), (d, d), (d, d), (d, n), (d, n), (n, d)]
    assert memory.trainable_params(every, shape) == layers * rank * sum(i + o for i, o in pairs)


@pytest.mark.parametrize("target", ["key", "output", "up", "down"])
def test_a_further_product_with_lora_costs_time_and_memory(target: str, machine: Machine) -> None:
    base, more = case(), case(lora_targets=("query", "value", target))
    assert held(base) < held(more)
    step, longer = (times_of.iteration_s(p, p.shape, machine)["step_s"] for p in (base, more))
    assert step <= longer


# --- the plan ------------------------------------------------------------------------------------------------------


def planned_s(p: Finetuning, machine: Machine) -> float:
    result = run(FinetuningWorkload().plan(p, machine, 1), CostModel(machine))
    return result.steps[-1].total_s


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("model", ["pythia_410m", "llama_2_7b"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"sequence_tokens": 32}, {"quantization": "nf4"}, {"checkpointing": "full"}, {"grad_accumulation": 5}],
    ids=str,
)
def test_the_engine_and_the_closed_form_agree(
    model: str, adapter: str, changes: dict[str, Any], machine: Machine
) -> None:
    p = case(model, adapter=adapter, warmup_steps=0, steps=1, **changes)
    estimate = FinetuningWorkload().estimate([p], machine)["step_s"][0]
    # the closed form leaves the optimiser out, which has few weights
    assert estimate <= planned_s(p, machine) * (1 + 1e-9)
    assert planned_s(p, machine) == pytest.approx(estimate, rel=0.02)


def test_all_weights_are_planned_as_training(machine: Machine) -> None:
    p = case("pythia_410m", adapter="none", steps=2)
    mine, theirs = FinetuningWorkload().plan(p, machine, 1), SlmTrainingWorkload().plan(p.as_training(), machine, 1)
    assert mine == replace(theirs, workload="finetuning")
    mine_s = FinetuningWorkload().estimate([p], machine)["step_s"][0]
    theirs_s = SlmTrainingWorkload().estimate([p.as_training()], machine)["step_s"][0]
    assert mine_s == theirs_s


def test_sharding_sends_what_replicas_do_not(machine: Machine) -> None:
    alone = planned_s(case(), machine)
    replicas, sharded = (planned_s(case(devices=8, sharding=s), machine) for s in ("ddp", "fsdp_full"))
    assert alone < replicas < sharded


def test_what_does_not_fit_says_what_would(machine: Machine) -> None:
    with pytest.raises(DoesNotFit, match=r"to fit, set quantization to nf4$"):
        FinetuningWorkload().plan(case("llama_2_13b", sequence_tokens=2048), machine, 1)
    with pytest.raises(DoesNotFit, match="take a device with more memory"):
        FinetuningWorkload().plan(case("llama_2_70b", sequence_tokens=4096), machine, 1)


def test_hours_and_dollars_are_those_of_all_tokens(machine: Machine) -> None:
    step = {"step_s": Metric(value=2.0, low=1.0, high=4.0, unit="s")}
    found = FinetuningWorkload().derived(case(total_tokens=512e4), machine, step)
    assert found["tokens_per_s"].value == 256
    assert (found["training_s"].low, found["training_s"].value) == (1e4, 2e4)
    assert machine.price is not None
    assert found["training_usd"].value == pytest.approx(2e4 / 3600 * machine.price.usd_per_h / 8)
    assert "training_s" not in FinetuningWorkload().derived(case(), machine, step)


# --- searches ------------------------------------------------------------------------------------------------------


def test_checkpointing_trades_memory_for_time(machine: Machine) -> None:
    none, full = (case(micro_batch=4, checkpointing=kind) for kind in ("none", "full"))
    assert held(full) < 0.7 * held(none)
    assert planned_s(full, machine) > 1.1 * planned_s(none, machine)


def test_the_cheapest_configuration_keeps_the_batch(in_tmp: Path) -> None:
    found = search("finetune_7b_a100", machines="aws_p4d_24xlarge,aws_p5_48xlarge", parts=True)
    chosen = [p for p in found.outcome.parameters if isinstance(p, Finetuning)]
    assert found.best is not None
    assert {p.tokens_per_step for p in chosen} == {4 * 16 * 512}
    assert {p.devices for p in chosen} == {1, 2, 4, 8, 16, 32, 64}
    assert {p.lora_targets for p in chosen} == {("query", "value")}


@pytest.mark.parametrize("until", [["loss=2.0"], ["tokens=0"]])
def test_a_goal_that_is_no_number_of_tokens_is_refused(until: list[str], in_tmp: Path) -> None:
    with pytest.raises(ConfigError, match="tokens"):
        search("finetune_7b_a100", until=until)
