"""Whole trainings and utilisation keep within what is possible; adapters lead to the workload that trains them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sandtable.errors import ConfigError
from sandtable.hardware import library
from sandtable.results import Metric
from sandtable.runs.predict import predict
from sandtable.workload import scenarios
from sandtable_workloads.training import metrics
from sandtable_workloads.training.slm_training import estimate
from sandtable_workloads.training.training_parameters import SlmTraining


def predicted(changes: dict[str, Any], machine: str | None = None, name: str = "slm_100m_a100") -> Any:
    case = scenarios.load(name, changes=changes, machine=machine)
    return predict(case.scenario, case.workload, case.parameters, case.machine)[0]


def test_a_training_is_no_shorter_than_a_step() -> None:
    found = predicted({"parameters.total_tokens": 10, "parameters.goodput": 1}).metrics
    assert found["training_s"].value == found["step_s.mean"].value
    assert metrics.whole_steps(100.0, 30.0) == 4
    assert metrics.whole_steps(90.0, 30.0) == 3
    assert metrics.whole_steps(0.3, 0.1) == 3


@pytest.mark.parametrize("text", ["20B", "20e9", 20e9, "20000000000"])
def test_tokens_are_written_as_anywhere(text: object) -> None:
    assert (
        scenarios.load("slm_100m_a100", changes={"parameters.total_tokens": text}).parameters.total_tokens == 20e9
    )  # type: ignore[attr-defined]


def test_what_is_no_number_of_tokens_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"total_tokens.*write it like '10e9' or '10B'"):
        scenarios.load("slm_100m_a100", changes={"parameters.total_tokens": "20 bananas"})


def test_goodput_by_hand() -> None:
    step = Metric(value=2.0, low=1.8, high=2.4, unit="s")
    found = metrics.whole_training(step, 1000, (0.8, 0.9, 1.0), "training_s")
    assert found.value == pytest.approx(2000 / 0.9)
    # a step may be 10 % shorter or 20 % longer, goodput 10 % better or 12.5 % worse: root sums of squares
    assert found.low == pytest.approx(found.value * (1 - np.hypot(0.1, 0.1)))
    assert found.high == pytest.approx(found.value * (1 + np.hypot(0.2, 0.125)))


def test_goodput_can_be_given_and_is_stated() -> None:
    usual, alone = predicted({}), predicted({"parameters.goodput": "100 %"})
    assert alone.metrics["training_s"].value == pytest.approx(0.9 * usual.metrics["training_s"].value)
    assert usual.metrics["training_usd"].value == pytest.approx(alone.metrics["training_usd"].value / 0.9)
    wider = usual.metrics["training_s"]
    assert wider.high / wider.value > alone.metrics["training_s"].high / alone.metrics["training_s"].value
    assert any("goodput of 90% (85% to 97%)" in warning for warning in usual.warnings)


@pytest.mark.parametrize("stack", ["generic", "cublas", "pytorch_compile"])
@pytest.mark.parametrize("machine", ["oci_bm_gpu4_8", "dgx_h100", "dgx_1_v100"])
def test_no_interval_passes_the_peak(machine: str, stack: str) -> None:
    changes = {"stack": stack, "parameters.model": "mpt_7b_alibi", "parameters.sequence_tokens": 2048}
    changes |= {
        "parameters.micro_batch": 2,
        "parameters.devices": 440,
        "parameters.sharding": "fsdp_full",
        "parameters.checkpointing": "full",
    }
    found = predicted(changes | {"parameters.precision": "mixed_float16"}, machine).metrics
    for name in ("mfu", "hfu"):
        assert found[name].low <= found[name].value <= found[name].high <= 1


def test_closed_form_and_engine_end_their_intervals_alike() -> None:
    machine = library.load_machine("dgx_a100_80gb", {"stack": "generic"})
    p = SlmTraining(model="slm_1b", micro_batch=8)
    columns = estimate([p], machine)
    case = scenarios.load("slm_100m_a100", machine="dgx_a100_80gb", changes={"stack": "generic"})
    step = predict(case.scenario, case.workload, p, machine)[0].metrics["step_s.mean"]
    assert step.low == pytest.approx(columns["low_s"][0], rel=0.03)
    tokens = p.tokens_per_step / columns["low_s"][0]
    shape = p.shape
    assert tokens * (6 * shape.n_active_params) < 312e12


def test_adapters_are_trained_by_the_workload_for_them() -> None:
    # Lightning-AI/litgpt config_hub/finetune/README.md @26857050: llama-2-7b/lora.yaml
    changes = {"model": "llama_2_7b", "sequence_tokens": 512, "micro_batch": 2, "devices": 1}
    given = {f"parameters.{name}": value for name, value in changes.items()}
    found = predicted(given | {"parameters.adapter": "lora", "parameters.lora_rank": 32}, "dgx_a100_40gb")
    assert found.scenario["workload"] == "finetuning"
    assert found.metrics["peak_memory_bytes"].value == pytest.approx(19.77e9, rel=0.04)
    packed = predicted(given | {"parameters.quantization": "nf4", "parameters.lora_rank": 32}, "dgx_a100_40gb")
    assert packed.metrics["peak_memory_bytes"].value < 0.75 * found.metrics["peak_memory_bytes"].value
