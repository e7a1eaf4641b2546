"""What RLHF holds, by model and kind; and whether what others reported as out of memory is."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sandtable import units
from sandtable.errors import DoesNotFit, PlanError
from sandtable.hardware import Machine, library
from sandtable_workloads.rlhf import rlhf_memory
from sandtable_workloads.rlhf.rlhf_parameters import Rlhf

SMALL: dict[str, Any] = {"rollout_batch": 8, "train_batch": 8, "micro_batch": 1, "prompt_tokens": 512}
QLORA: dict[str, Any] = {"adapter": "lora", "quantization": "nf4", "precision": "bfloat16", "critic": "shared"}


def campaign(**changes: Any) -> Rlhf:
    return Rlhf.model_validate(SMALL | {"answer_tokens": 512} | changes, context=units.AT_EDGE)


def machine_of(name: str) -> Machine:
    return library.load_machine(name, {"stack": "pytorch_eager"})


def bytes_per_param(p: Rlhf, machine: Machine) -> float:
    """States of all models, and the gradients that each trained one has at its update, per parameter of the policy."""
    states = sum(sum(rlhf_memory.states_of(p, machine, role).values()) for role in p.roles)
    trained = rlhf_memory.TRAINED if p.critic == "own" else rlhf_memory.TRAINED[:1]
    moments = [rlhf_memory.trained_of(p, machine, role)["gradients"] for role in trained]
    return (states + sum(moments)) / p.shape.n_params


def test_a_critic_of_its_own_takes_36_bytes_a_parameter_and_a_value_head_20() -> None:
    # policy and critic: 2 of weights, 2 of gradients, 4 + 4 + 4 for the optimiser; reference and reward model: 2 each
    machine = machine_of("dgx_a100_80gb")
    assert bytes_per_param(campaign(), machine) == pytest.approx(36, rel=0.01)
    assert bytes_per_param(campaign(critic="shared"), machine) == pytest.approx(20, rel=0.01)


def test_the_reference_is_a_second_copy_of_the_policy() -> None:
    machine = machine_of("dgx_a100_80gb")
    p = campaign(precision="bfloat16")
    weights = {role: rlhf_memory.states_of(p, machine, role)["weights"] for role in ("policy", "reference")}
    assert weights["reference"] == weights["policy"] == 2 * p.shape.n_params


def test_with_an_adapter_only_a_soup_needs_weights_of_its_own() -> None:
    machine = machine_of("dgx_a100_80gb")
    plain, soup = (campaign(adapter="lora", precision="bfloat16", reference=kind) for kind in ("sft", "soup"))
    assert rlhf_memory.states_of(plain, machine, "reference") == {}
    assert rlhf_memory.states_of(soup, machine, "reference")["weights"] == pytest.approx(2 * soup.shape.n_params)


FOUR = {"devices": 4, "critic_devices": 1, "reference_devices": 1, "reward_devices": 1}
OPENRLHF = {"sharding": "fsdp_grad_op", "offload_optimizer": "host", "checkpointing": "full"}
REPORTS: list[tuple[str, str, dict[str, Any], bool]] = [
    # huggingface/trl issue 1444: policy and its copy, fully trained, on one GPU
    ("trl 1444", "dgx_a100_80gb", {"model": "llama_2_7b"}, False),
    # huggingface/trl issue 688: 13B on 24 GB with LoRA, answers of 128 tokens, a small reward model
    (
        "trl 688",
        "desktop_rtx4090",
        {
            "model": "llama_2_13b",
            "adapter": "lora",
            "precision": "bfloat16",
            "critic": "shared",
            "reward_model": "gpt2",
        }
        | {"answer_tokens": 128},
        False,
    ),
    # huggingface/trl pull request 2571, issue 2719: Qwen2.5-7B as all four models on one A100, batch 1
    ("trl 2571", "dgx_a100_80gb", {"model": "qwen_2_5_7b", "precision": "bfloat16"}, False),
    # huggingface/trl issue 2833: Phi-4 in 4 bits with LoRA on T4s, batch 1
    (
        "trl 2833",
        "aws_g4dn_2xlarge",
        QLORA
        | {"model": "phi_4", "reward_model": "gpt2", "lora_targets": ["query", "key", "value", "output"]}
        | {"rollout_batch": 1, "train_batch": 1},
        False,
    ),
    # allenai/open-instruct issue 393: ZeRO-3 over three of four H100 with 94 GB, the fourth generates
    (
        "open-instruct 393",
        "grand_teton_h100_96gb",
        {"model": "llama_2_7b", "sharding": "fsdp_full", "devices": 4, "placement": "separate"}
        | {"generation_devices": 1, "train_batch": 6, "answer_tokens": 1024},
        False,
    ),
    # CarperAI/trlx issues 286 and 266: eight A100 with 40 GB
    ("trlx 286", "dgx_a100_40gb", {"model": "gpt_j_6b", "sharding": "fsdp_grad_op", "devices": 8}, False),
    # OpenRLHF issue 254: a maintainer says 7B fits on four A100 with 40 GB, one for each model
    ("openrlhf 254", "dgx_a100_40gb", {"model": "llama_2_7b", **FOUR, **OPENRLHF}, True),
    # OpenRLHF issue 275: the same on four RTX 4090, micro-batches of 8 and 16 sequences of 2048 tokens
    (
        "openrlhf 275",
        "desktop_4x_rtx4090",
        {
            "model": "llama_2_7b",
            "prompt_tokens": 1024,
            "answer_tokens": 1024,
            "rollout_batch": 1024,
            "train_batch": 64,
        }
        | {"micro_batch": 8, "rollout_micro_batch": 16, **FOUR, **OPENRLHF},
        False,
    ),
]


@pytest.mark.parametrize(
    ("machine", "changes", "fits"), [case[1:] for case in REPORTS], ids=[c[0] for c in REPORTS]
)
def test_reports_of_memory_come_out_as_reported(machine: str, changes: dict[str, Any], fits: bool) -> None:
    p = campaign(**changes)
    assert rlhf_memory.fault_of(p, machine_of(machine)) == ""
    assert rlhf_memory.verdict_of(p, machine_of(machine)).fits == fits


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    machine = machine_of("dgx_a100_80gb")
    with pytest.raises(DoesNotFit, match=r"policy .* pass the limit .*this would fit: .*") as refused:
        rlhf_memory.check(campaign(devices=4), machine, 0)
    suggested = str(refused.value).rpartition("this would fit: ")[2].split("; ")[0]
    changes = dict(part.split("=") for part in suggested.split(", "))
    assert rlhf_memory.verdict_of(campaign(devices=4, **changes), machine).fits


def test_no_adapter_is_suggested_that_the_optimizer_cannot_train() -> None:
    machine = machine_of("dgx_a100_80gb")
    found = {name: " ".join(rlhf_memory.what_fits(campaign(optimizer=name), machine)) for name in ("adamw", "muon")}
    assert "adapter=lora" in found["adamw"]
    assert "adapter=lora" not in found["muon"]


def test_what_is_given_a_device_of_its_own_leaves_the_others() -> None:
    machine = machine_of("dgx_a100_80gb")
    together = rlhf_memory.memory_of(campaign(devices=4, checkpointing="full"), machine)
    apart = rlhf_memory.memory_of(campaign(checkpointing="full", **FOUR), machine)
    assert "reward weights" in together
    assert "reward weights" not in apart
    assert sum(apart.values()) < sum(together.values())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"placement": "separate"}, "generation_devices 0"),
        ({"generation_devices": 1, "devices": 2}, "placement colocated"),
        ({"devices": 4, "critic_devices": 4}, "leave the policy none"),
        ({"train_batch": 16}, "more than the rollout_batch"),
        ({"answer_mean_tokens": 600}, "more than answer_tokens 512"),
        ({"n_sft": 2}, "one model is no average"),
        ({"quantization": "nf4"}, "packed weights cannot be trained"),
        ({"adapter": "lora", "optimizer": "muon"}, "adapters are trained with optimizer adamw"),
        ({"devices": 3, "tensor_parallel": 2}, "no multiple of its groups"),
        ({"critic": "shared", "devices": 4, "critic_devices": 1}, "no devices of its own"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        campaign(**changes)


def test_too_few_machines_are_refused() -> None:
    with pytest.raises(PlanError, match="devices"):
        rlhf_memory.check(campaign(devices=16), machine_of("desktop_4x_rtx4090"), 0)
