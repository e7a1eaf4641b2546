"""A type that the hardware has no units for is slow or refused, never given another type's speed."""

from __future__ import annotations

from typing import Any

import pytest

from sandtable.errors import PlanError
from sandtable.hardware import DTYPE_BYTES, Machine, arithmetic_of, library
from sandtable.runs.predict import predict
from sandtable.workload.seam import Scenario
from sandtable_workloads.finetuning.finetuning import FinetuningWorkload
from sandtable_workloads.training.slm_training import SlmTrainingWorkload, estimate
from sandtable_workloads.training.training_parameters import SlmTraining

V100 = {"float32": 15.7e12, "float16": 125e12, "int8": 62.8e12}
A100 = {"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12, "float16": 312e12, "int8": 624e12}
# sign and exponent range, and bits of the mantissa: what a type can tell apart
EXPONENT = {"float32": 8, "tf32": 8, "bfloat16": 8, "float16": 5, "fp8": 5, "fp4": 2, "int8": 3}
MANTISSA = {"float32": 23, "tf32": 10, "bfloat16": 7, "float16": 10, "fp8": 3, "fp4": 1, "int8": 7}


def machine(name: str) -> Machine:
    return library.load_machine(name)


def training(**changes: Any) -> SlmTraining:
    return SlmTraining(**({"model": "slm_100m", "micro_batch": 4, "steps": 2} | changes))


def step_s(name: str, **changes: Any) -> float:
    return float(estimate([training(**changes)], machine(name))["step_s"][0])


@pytest.mark.parametrize("peaks", [V100, A100, {"float32": 1e12}, {"float32": 1e12, "bfloat16": 2e12}])
@pytest.mark.parametrize("dtype", MANTISSA)
def test_what_stands_in_holds_every_value(peaks: dict[str, float], dtype: str) -> None:
    if dtype == "tf32" and dtype not in peaks:
        assert arithmetic_of(peaks, dtype, "gpu") == "float32"
        return
    found = arithmetic_of(peaks, dtype, "gpu")
    assert EXPONENT[found] >= EXPONENT[dtype]
    assert MANTISSA[found] >= MANTISSA[dtype]
    assert DTYPE_BYTES[found] >= DTYPE_BYTES[dtype]


def test_a_float_is_not_computed_in_integers() -> None:
    with pytest.raises(PlanError, match="'gpu' states no arithmetic rate for fp8"):
        arithmetic_of({"int8": 1e12}, "fp8", "gpu")


@pytest.mark.parametrize("name", ["dgx_1_v100", "aws_g4dn_2xlarge"])
@pytest.mark.parametrize("precision", ["bfloat16", "mixed_bfloat16"])
def test_bfloat16_is_no_faster_than_float32_before_ampere(name: str, precision: str) -> None:
    assert step_s(name, precision=precision) > step_s(name, precision="float32")
    assert step_s(name, precision="mixed_float16") < 0.5 * step_s(name, precision="float32")


def test_the_engine_and_its_warning() -> None:
    scenario = Scenario(name="x", title="x", workload="slm_training", machine="dgx_1_v100")
    workload = SlmTrainingWorkload()
    narrow, wide = (
        predict(scenario, workload, training(precision=precision), machine("dgx_1_v100"))[0]
        for precision in ("bfloat16", "float32")
    )
    assert narrow.metrics["step_s.mean"].value > wide.metrics["step_s.mean"].value
    assert "nvidia_v100_sxm2 has no bfloat16 units" in narrow.warnings[0]
    assert not any("units" in warning for warning in wide.warnings)


def test_fp8_is_refused_where_there_are_no_units_for_it() -> None:
    workload = SlmTrainingWorkload()
    with pytest.raises(PlanError, match=r"nvidia_a100_sxm has no fp8 units.*write precision: mixed_bfloat16"):
        workload.plan(training(precision="mixed_fp8"), machine("dgx_a100_80gb"), 1)
    assert "no fp8 units" in workload.faults([training(precision="mixed_fp8")], machine("dgx_1_v100"))[0]
    assert workload.faults([training(precision="mixed_fp8")], machine("dgx_h100")) == [""]


def test_adapters_are_emulated_too() -> None:
    workload = FinetuningWorkload()
    parameters = workload.parameters.model_validate({"model": "pythia_1b", "steps": 2})
    plan = workload.plan(parameters, library.load_machine("dgx_1_v100", {"stack": "litgpt"}), 1)  # type: ignore[arg-type]
    assert "emulated in float32" in plan.notes[0]
