"""Experts in training as batched products, and adapters that the devices of a machine share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sandtable import library
from sandtable.engine.run import run
from sandtable.model.operations import CostModel
from sandtable.plan import Op
from sandtable_workloads.training import demand, workload
from sandtable_workloads.training.parameters import SlmTraining
from sandtable_workloads.training.plan import plan_of

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


def flops(products: list[demand.Demand]) -> float:
    return sum(2.0 * float(np.prod([float(size) for size in product.shape])) for product in products)


@pytest.mark.parametrize("expert_parallel", [1, 2, 8])
def test_experts_compute_what_tokens_are_routed_to_wherever_they_lie(expert_parallel: int) -> None:
    parameters = SlmTraining(**RUN | {"expert_parallel": expert_parallel})
    shape, c = workload.shape_of(parameters), workload.configuration(parameters, DGX)
    assert shape.moe is not None
    products = demand.expert_products(c)
    assert [product.shape[3] for product in products] == [shape.moe.n_experts / expert_parallel] * 2
    assert flops(products) == pytest.approx(2 * 2048 * shape.moe.top_k * shape.expert_params)
    backward = [gradient for product in products for gradient in demand.backward_of(product)]
    assert flops(backward) == pytest.approx(2 * flops(products))


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_fp8"])
def test_a_step_with_experts_in_closed_form_and_played(precision: str) -> None:
    parameters = SlmTraining(**RUN | {"expert_parallel": 8, "precision": precision})
    c = workload.configuration(parameters, DGX)
    plan = plan_of(parameters, c, workload.shape_of(parameters), DGX, {})
    played = run(plan, CostModel(DGX)).steps[-1].total_s
    assert workload.estimate([parameters], DGX)[0]["step_s"] == pytest.approx(played, rel=0.02)


def test_devices_share_the_one_adapter_of_their_machine() -> None:
    machine = library.load_machine("server_8x_v100_16gb", {"stack": "megatron_lm"})
    assert machine.network is not None
    n_bytes, n_ranks = 2.0**28, 32
    op = Op(name="", kind="all_reduce", account="", shape=(n_bytes, float(n_ranks), 8.0), dtype="float16")
    passed = 2 * (n_ranks - 1) / n_ranks * n_bytes
    least = passed / machine.network.datasheet.bandwidth_bytes_per_s
    assert least < CostModel(machine).time(op).seconds < 2 * least
