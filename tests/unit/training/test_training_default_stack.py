"""Training on a machine that names no software runs on what people use, visibly; what its memory holds at the peak."""

from __future__ import annotations

from typing import Any

import pytest

from sandtable.hardware import library
from sandtable.studies import cheapest
from sandtable.workload import scenarios
from sandtable_workloads.training.slm_training import SlmTrainingWorkload, estimate, memory_of
from sandtable_workloads.training.training_parameters import SlmTraining

# foundation-model-stack/fms-fsdp README.md @0d319983 (eager) and @ed74fd5d (compiled): tokens/s on each of 128 A100s
LLAMA = {
    "model": "llama_2_7b",
    "devices": 128,
    "micro_batch": 2,
    "precision": "mixed_bfloat16",
    "sequence_tokens": 4096,
    "sharding": "fsdp_full",
}
# foundation-model-stack/fms-acceleration scripts/benchmarks/refs/a100_80gb.csv @876e2ed6: Mistral-7B, all weights
MISTRAL = {"model": "mistral_7b", "sequence_tokens": 4096, "micro_batch": 4, "checkpointing": "full"}
MISTRAL_TENSOR_BYTES, MISTRAL_SMI_BYTES = 72.43e9, 75.4 * 2**30


def loaded(changes: dict[str, Any], machine: str = "dgx_a100_80gb") -> scenarios.Case:
    return scenarios.load("slm_100m_a100", machine=machine, changes=changes)


def stack_of(case: scenarios.Case) -> str:
    assert case.machine.stack is not None
    return case.machine.stack.name


@pytest.mark.parametrize(
    ("scenario", "machine", "stack"),
    [
        ("slm_100m_a100", None, "pytorch_eager"),
        ("slm_100m_a100", "laptop_pcie4", "pytorch_cpu"),
        ("slm_1b_cloud", None, "huggingface_pytorch_2_3"),
        ("slm_100m_a100", "desktop_rtx4090", "pytorch_eager"),
        ("flash_rtx4090", None, "pytorch_cuda_eager"),
        ("finetune_7b_a100", "dgx_h100", "litgpt"),
        ("flash_laptop", None, "generic"),
    ],
)
def test_software_is_named_by_scenario_machine_or_workload(scenario: str, machine: str | None, stack: str) -> None:
    assert stack_of(scenarios.load(scenario, machine=machine)) == stack


def test_the_best_case_is_had_by_its_name_and_says_so() -> None:
    case = loaded({"stack": "generic"})
    assert stack_of(case) == "generic"
    assert stack_of(loaded({"machine.stack": "generic"})) == "generic"
    assert case.machine.stack is not None
    assert case.machine.stack.best_case
    for name in ("pytorch_eager", "pytorch_compile", "litgpt", "huggingface_pytorch_2_3"):
        assert not library.load_stack(name).best_case


def test_a_search_runs_on_the_same_software() -> None:
    found = cheapest.search("slm_100m_a100", machines="dgx_a100_80gb,dgx_h100", until=["tokens=1B"], most_devices=1)
    stacks = {None if machine.stack is None else machine.stack.name for machine in found.outcome.machines}
    assert stacks == {"pytorch_eager"}


@pytest.mark.parametrize(("stack", "measured"), [(None, 3760), ("pytorch_compile", 4550)])
def test_llama_on_128_gpus(stack: str | None, measured: float) -> None:
    machine = loaded({} if stack is None else {"stack": stack}).machine
    parameters = SlmTraining(**LLAMA)
    step = estimate([parameters], machine)
    tokens = parameters.tokens_per_step / parameters.devices
    assert tokens / step["step_s"][0] == pytest.approx(measured, rel=0.05)
    assert tokens / step["high_s"][0] < measured < tokens / step["low_s"][0]


@pytest.mark.parametrize("stack", [None, "huggingface_pytorch_2_3"])
def test_the_optimizers_step_is_the_peak_of_full_fine_tuning(stack: str | None) -> None:
    machine = loaded({} if stack is None else {"stack": stack}).machine
    held = memory_of(SlmTraining(**MISTRAL), machine)
    assert held is not None
    tensors = sum(held.values()) - held["reserved"]
    assert tensors == pytest.approx(MISTRAL_TENSOR_BYTES, rel=0.002)
    assert tensors < sum(held.values()) < MISTRAL_SMI_BYTES
    assert SlmTrainingWorkload().verdicts([SlmTraining(**MISTRAL)], machine)[0].fits


def test_gaps_open_only_where_tensors_come_and_go() -> None:
    machine = loaded({}).machine
    assert machine.stack is not None
    sheet = machine.stack.datasheet
    many = memory_of(SlmTraining(**(MISTRAL | {"micro_batch": 16})), machine)
    few = memory_of(SlmTraining(**(MISTRAL | {"micro_batch": 1})), machine)
    assert many is not None
    assert few is not None
    gaps = (sum(many.values()) - many["reserved"]) * sheet.fragmented_frac / (1 - sheet.fragmented_frac)
    assert many["reserved"] == pytest.approx(sheet.reserved_bytes + gaps)
    assert few["reserved"] == sheet.reserved_bytes
