"""Fine-tuning by counting: what is frozen costs less, packed weights cost less, longer sequences cost more."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable.errors import PlanError
from sandtable.hardware import Machine, library
from sandtable_workloads.finetuning import adapters
from sandtable_workloads.training.slm_training import SlmTrainingWorkload
from sandtable_workloads.training.training_parameters import SlmTraining

MODELS = ["pythia_410m", "llama_2_7b", "llama_2_70b", "falcon_7b", "phi_1_5"]
ADAPTERS = ["lora", "adapter", "adapter_v2"]


def case(model: str = "llama_2_7b", **changes: Any) -> SlmTraining:
    base = {"adapter": "lora", "precision": "bfloat16", "micro_batch": 1, "sequence_tokens": 512}
    return SlmTraining(model=model, **(base | changes))


def held(p: SlmTraining) -> float:
    return sum(adapters.memory_of(p, p.shape).values())


def full_states(p: SlmTraining) -> float:
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
    assert adapters.trainable_params(p, p.shape) == count


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("model", MODELS)
def test_an_adapter_holds_less_than_the_states_of_full_training(model: str, adapter: str) -> None:
    p = case(model, adapter=adapter, sequence_tokens=256)
    assert held(p) < full_states(p)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("model", MODELS)
def test_packed_weights_hold_less_and_packed_scales_less_again(model: str, adapter: str) -> None:
    wide, packed, nested = (
        adapters.base_bytes(p, p.shape)
        for p in (case(model, adapter=adapter, quantization=q) for q in ("none", "nf4", "nf4_dq"))
    )
    assert nested < packed < wide
    short = {"adapter": adapter, "sequence_tokens": 64}
    if model.startswith("llama"):
        assert held(case(model, quantization="nf4", **short)) < held(case(model, **short))


def test_packed_weights_approach_half_a_byte_and_their_scales() -> None:
    p = case("llama_2_70b", quantization="nf4_dq")
    packed = adapters.base_bytes(p, p.shape) / p.shape.n_params
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
    frozen = adapters.base_bytes(one, one.shape) + 8 * adapters.trainable_params(one, one.shape)
    assert held(many) - frozen == pytest.approx(batch * (held(one) - frozen), rel=1e-9)


@given(rank=st.integers(1, 512))
def test_weights_of_lora_are_proportional_to_its_rank(rank: int) -> None:
    one, many = case(lora_rank=1), case(lora_rank=rank)
    assert adapters.trainable_params(many, many.shape) == rank * adapters.trainable_params(one, one.shape)


def test_sharding_keeps_whole_gradients_while_it_accumulates() -> None:
    sharded: dict[str, Any] = {"sharding": "fsdp_full", "checkpointing": "full", "sequence_tokens": 64}
    shape = case().shape
    once, often = (
        adapters.memory_of(case(devices=8, grad_accumulation=n, **sharded), shape)["gradients"] for n in (1, 16)
    )
    assert often > 2 * (shape.n_params - shape.embedding_params)
    assert once < often / 7


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("model", ["pythia_410m", "llama_2_7b"])
def test_packed_products_and_more_tokens_take_longer(model: str, adapter: str, machine: Machine) -> None:
    shape = case(model).shape
    times = [
        adapters.iteration_s(case(model, adapter=adapter, quantization=q, sequence_tokens=t), shape, machine)[
            "step_s"
        ]
        for q, t in (("none", 128), ("nf4", 128), ("nf4_dq", 128), ("nf4_dq", 2048))
    ]
    assert times == sorted(times)
    assert times[0] < times[2] < times[3]


def test_a_long_sequence_is_bound_by_the_device(machine: Machine) -> None:
    shape = case().shape
    once, twice = (
        adapters.iteration_s(case(micro_batch=b, sequence_tokens=2048), shape, machine)["step_s"] for b in (4, 8)
    )
    assert 1.8 < twice / once < 2.05


def test_a_short_one_is_bound_by_the_host(machine: Machine) -> None:
    shape = case("pythia_410m").shape
    short, longer = (
        adapters.iteration_s(case("pythia_410m", sequence_tokens=t), shape, machine)["step_s"] for t in (16, 64)
    )
    assert longer < 1.01 * short


def test_frozen_weights_of_flat_parameters_get_gradients(machine: Machine) -> None:
    long: dict[str, Any] = {"sequence_tokens": 2048, "micro_batch": 4}
    sharded: dict[str, Any] = {"sharding": "fsdp_full", "checkpointing": "none", "devices": 8}
    shape = case().shape
    alone = adapters.iteration_s(case(**long), shape, machine)["backward_s"]
    flat = adapters.iteration_s(case(**long, **sharded), shape, machine)["backward_s"]
    assert 1.3 < flat / alone < 2.2


def test_decoding_is_bound_by_layers_not_by_bytes(machine: Machine) -> None:
    small, large = (
        adapters.token_s(case(m), case(m).shape, machine)["token_s"] for m in ("llama_2_7b", "llama_2_13b")
    )
    assert large / small == pytest.approx(40 / 32, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": "float32"}, "pure bfloat16"),
        ({"tensor_parallel": 2, "devices": 2}, "on one device"),
        ({"sharding": "fsdp_full", "devices": 2, "quantization": "nf4"}, "not sharded"),
        ({"model": "mixtral_8x7b"}, "experts"),
    ],
)
def test_what_is_not_described_is_refused(changes: dict[str, Any], words: str) -> None:
    p = case(**changes)
    with pytest.raises(PlanError, match=words):
        adapters.check(p, p.shape)


def test_adapters_are_neither_played_nor_swept(machine: Machine) -> None:
    workload = SlmTrainingWorkload()
    with pytest.raises(PlanError, match="neither played nor executed"):
        workload.plan(case(), machine, seed=1)
    with pytest.raises(PlanError, match="neither played nor executed"):
        workload.estimate([case()], machine)


def test_packed_weights_cannot_be_trained() -> None:
    with pytest.raises(ValueError, match="packed weights cannot be trained"):
        SlmTraining(quantization="nf4")
