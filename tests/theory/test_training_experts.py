"""Experts in training as batched products, and adapters that the devices of a machine share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sandtable.demand.op import Op
from sandtable.demand.operator_shapes import CollectiveShape
from sandtable.engine.simulation import run
from sandtable.hardware import library
from sandtable.model.cost_model import CostModel
from sandtable_workloads.training import slm_training, step_demand
from sandtable_workloads.training.training_parameters import SlmTraining
from sandtable_workloads.training.training_plan import plan_of

MODEL = "Qwen3-30B-A3B"
RUN: dict[str, Any] = {
    "model": MODEL,
    "sequence_tokens": 2048,
    "micro_batch": 1,
    "devices": 8,
    "sharding": "zero_1",
    "precision": "mixed_bfloat16",
    "warmup_steps": 0,
}
DGX = library.load_machine("dgx_h100", {"stack": "megatron_te"})


def flops(products: list[step_demand.Demand]) -> float:
    return sum(2.0 * float(np.prod([float(size) for size in product.shape[:4]])) for product in products)


@pytest.mark.parametrize("expert_parallel", [1, 2, 8])
def test_experts_compute_what_tokens_are_routed_to_wherever_they_lie(expert_parallel: int) -> None:
    parameters = SlmTraining(**RUN | {"expert_parallel": expert_parallel})
    shape, c = parameters.shape, slm_training.configuration(parameters, DGX)
    assert shape.moe is not None
    products = step_demand.expert_products(c)
    assert [product.shape[3] for product in products] == [shape.moe.n_experts / expert_parallel] * 2
    assert flops(products) == pytest.approx(2 * 2048 * shape.moe.top_k * shape.expert_params)
    backward = [gradient for product in products for gradient in step_demand.backward_of(product)]
    assert flops(backward) == pytest.approx(2 * flops(products))


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_fp8"])
def test_a_step_with_experts_in_closed_form_and_played(precision: str) -> None:
    parameters = SlmTraining(**RUN | {"expert_parallel": 8, "precision": precision})
    c = slm_training.configuration(parameters, DGX)
    plan = plan_of(parameters, c, parameters.shape, DGX, {})
    played = run(plan, CostModel(DGX)).steps[-1].total_s
    assert slm_training.estimate([parameters], DGX)["step_s"][0] == pytest.approx(played, rel=0.02)


def test_devices_share_the_one_adapter_of_their_machine() -> None:
    machine = library.load_machine("server_8x_v100_16gb", {"stack": "megatron_lm"})
    assert machine.network is not None
    n_bytes, n_ranks = 2.0**28, 32
    op = Op(
        name="",
        operator="all_reduce",
        account="",
        shape=CollectiveShape(n_bytes, float(n_ranks), 8.0),
        dtype="float16",
    )
    passed = 2 * (n_ranks - 1) / n_ranks * n_bytes
    least = passed / machine.network.datasheet.bandwidth_bytes_per_s
    assert least < CostModel(machine).time(op).seconds < 2 * least


def test_narrow_products_are_cast_once_a_direction() -> None:
    dense = SlmTraining(**RUN | {"model": "Llama-2-7B", "precision": "mixed_fp8"})
    c, kind, software = slm_training.configuration(dense, DGX), step_demand.LayerKind(), step_demand.Software(None)
    products = step_demand.layer_products(c, kind)
    assert {product.dtype for product in products} == {"fp8"}
    forward, backward = (step_demand.casts(products, c, software, backward=way) for way in (False, True))
    sizes = [product.shape for product in products]
    per_element = 2 + 2 * 1  # bytes read, and written in two layouts
    assert [cast.shape[0] for cast in forward] == [per_element * k * (m + n) for m, n, k, *_ in sizes]
    assert [cast.shape[0] for cast in backward] == [per_element * m * n for m, n, *_ in sizes]
    wide = slm_training.configuration(dense.model_copy(update={"precision": "mixed_bfloat16"}), DGX)
    assert not step_demand.casts(step_demand.layer_products(wide, kind), wide, software, backward=False)
