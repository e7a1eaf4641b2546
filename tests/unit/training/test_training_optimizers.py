"""Optimisers: bytes that they keep and move, the matrices that Muon sees, and those that are executed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sandtable.errors import ConfigError
from sandtable.hardware import library
from sandtable.runs.predict import predict
from sandtable.workload.seam import Scenario
from sandtable_workloads.finetuning.finetuning import FinetuningWorkload
from sandtable_workloads.finetuning.finetuning_parameters import Finetuning
from sandtable_workloads.training.executed import run_job
from sandtable_workloads.training.slm_training import SlmTrainingWorkload, estimate, memories
from sandtable_workloads.training.states import optimizers
from sandtable_workloads.training.training_parameters import SlmTraining

DGX = library.load_machine("dgx_a100_80gb", {"stack": "pytorch_eager"})
ALL = ("adamw", "adamw_8bit", "adafactor", "lion", "muon", "sgd")


def training(**changes: Any) -> SlmTraining:
    return SlmTraining(**({"model": "llama_2_7b", "precision": "mixed_bfloat16", "devices": 8} | changes))


def held(optimizer: str, **changes: Any) -> float:
    p = training(optimizer=optimizer, **changes)
    return optimizers.held_bytes(p, p.shape)


def test_bytes_of_states_by_hand() -> None:
    assert held("adamw") == 8
    assert held("adamw", precision="bfloat16") == 4
    assert held("lion") == held("sgd") == 4
    # a byte for each state, and four for every 256 of them
    assert held("adamw_8bit") == pytest.approx(2 + 2 * 4 / 256)
    # 7B: 32 layers of four squares of 4096 and three of 4096 x 11008, two tables of 32000 x 4096
    sums = 32 * (4 * 2 * 4096 + 3 * (4096 + 11008)) + 2 * (32000 + 4096)
    assert held("adafactor") == pytest.approx(4 * sums / 6_738_415_616)
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert held("muon") == pytest.approx(4 * (2 - matrices / 6_738_415_616))


@pytest.mark.parametrize("model", ["llama_2_7b", "llama_3_8b", "mixtral_8x7b", "deepseek_v3", "gpt2", "slm_100m"])
def test_matrices_are_nearly_all_parameters_of_layers(model: str) -> None:
    shape = training(model=model).shape
    tables = shape.parts["embedding"] + shape.parts["head"]
    assert optimizers.hidden_frac(shape) == pytest.approx(1 - tables / shape.n_params, abs=0.003)


@pytest.mark.parametrize("sharding", ["ddp", "zero_1", "fsdp_full"])
def test_memory_holds_these_bytes(sharding: str) -> None:
    runs = [training(optimizer=name, sharding=sharding) for name in ALL]
    share = 1 if sharding == "ddp" else 8
    for p, found in zip(runs, memories(runs, DGX), strict=True):
        wanted = optimizers.held_bytes(p, p.shape) * p.shape.n_params / share
        assert found["optimizer"] == pytest.approx(wanted, rel=1e-3)


def test_fewer_states_take_less_time_and_muon_more() -> None:
    seconds = dict(zip(ALL, estimate([training(optimizer=name) for name in ALL], DGX)["optimizer_s"], strict=True))
    assert seconds["lion"] < seconds["adamw"] < seconds["muon"]
    assert seconds["adamw_8bit"] < 0.5 * seconds["adamw"]


@pytest.mark.parametrize("sharding", ["ddp", "fsdp_full"])
def test_engine_and_closed_form_agree_on_each(sharding: str) -> None:
    scenario = Scenario(name="x", title="x", workload="slm_training")
    runs = [training(model="slm_1b", optimizer=name, steps=1, warmup_steps=0, sharding=sharding) for name in ALL]
    closed = estimate(runs, DGX)["step_s"]
    engine = [predict(scenario, SlmTrainingWorkload(), p, DGX)[0].metrics["step_s"].value for p in runs]
    assert np.array(engine) == pytest.approx(closed, rel=0.02)


def test_muon_multiplies_what_five_iterations_do() -> None:
    # Liu et al., arXiv 2502.16982: 5 x (2 products of m x m x n, one of m x m x m) for each matrix
    alone, with_muon = (
        SlmTrainingWorkload()
        .plan(training(model="slm_1b", devices=1, micro_batch=1, optimizer=name, steps=1, warmup_steps=0), DGX, 1)
        .totals()["flops"]
        for name in ("adamw", "muon")
    )
    shape = training(model="slm_1b").shape
    d, n, layers = shape.d_model, shape.n_neurons, shape.n_layers

    def flops(short: int, long: int) -> float:
        return 5 * (2 * 2 * short * short * long + 2 * short**3)

    joined = flops(d, 3 * d) + flops(d, d)
    wanted = layers * (joined + shape.n_vectors * flops(d, n))
    assert with_muon - alone == pytest.approx(wanted, rel=1e-6)


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="leave optimizer_dtype out"):
        training(optimizer="adamw_8bit", optimizer_dtype="float32")
    with pytest.raises(ValueError, match="adapters are trained with optimizer adamw, adamw_8bit, lion, sgd"):
        Finetuning(optimizer="muon")


def test_adapters_keep_states_of_their_optimizer() -> None:
    workload, machine = FinetuningWorkload(), library.load_machine("dgx_a100_40gb", {"stack": "litgpt"})
    few, many = (
        workload.plan(Finetuning(optimizer=name), machine, 1).memory_bytes["optimizer"]  # type: ignore[arg-type]
        for name in ("sgd", "adamw")
    )
    assert many == 2 * few > 0


@pytest.mark.parametrize(
    ("optimizer", "sharding"), [("muon", "ddp"), ("adamw_8bit", "ddp"), ("adafactor", "fsdp_full")]
)
def test_others_are_simulated_only(optimizer: str, sharding: str) -> None:
    p = SlmTraining(model="tiny_3x64", precision="float32", optimizer=optimizer, sharding=sharding)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"simulated only; executed are adamw, sgd, lion"):
        run_job.check_executable(p)


def test_lion_by_hand() -> None:
    torch = pytest.importorskip("torch")
    from sandtable_workloads.training.states.torch_optimizers import Lion

    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = Lion([weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.tensor([3.0, -1.0])
    optimizer.step()
    assert weight.tolist() == pytest.approx([1 * 0.95 - 0.1, -2 * 0.95 + 0.1])
    assert optimizer.state[weight]["exp_avg"].tolist() == pytest.approx([0.03, -0.01])
    # momentum outvotes a small gradient: 0.9 x 0.03 - 0.1 x 0.2 > 0
    weight.grad = torch.tensor([-0.2, 0.0])
    before = weight.tolist()
    optimizer.step()
    assert weight.tolist() == pytest.approx([before[0] * 0.95 - 0.1, before[1] * 0.95 + 0.1])
