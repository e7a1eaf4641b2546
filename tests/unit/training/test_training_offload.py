"""States and weights that lie elsewhere: bytes on device, host and drive, and the time of moving them."""

from __future__ import annotations

from typing import Any

import pytest

from sandtable.errors import ConfigError, DoesNotFit, PlanError
from sandtable.hardware import library
from sandtable.runs.predict import predict
from sandtable.workload.seam import Scenario
from sandtable_workloads.training.executed import run_job
from sandtable_workloads.training.slm_training import SlmTrainingWorkload, configuration, estimate, memory_of
from sandtable_workloads.training.states import offloading
from sandtable_workloads.training.step_demand import held_params
from sandtable_workloads.training.training_parameters import SlmTraining

DGX = library.load_machine("dgx_a100_80gb", {"stack": "pytorch_eager"})
LAPTOP = library.load_machine("desktop_rtx4090", {"stack": "pytorch_eager"})
WORKLOAD = SlmTrainingWorkload()
PLACES = (("none", "none"), ("host", "none"), ("nvme", "none"), ("host", "host"), ("nvme", "nvme"))


def run_of(places: tuple[str, str] = ("none", "none"), **changes: Any) -> SlmTraining:
    values = {"model": "slm_1b", "precision": "mixed_bfloat16", "steps": 1, "warmup_steps": 0}
    where = {"offload_optimizer": places[0], "offload_parameters": places[1]}
    return SlmTraining.model_validate(values | where | changes)


def held(p: SlmTraining, machine: Any = DGX) -> dict[str, float]:
    found = memory_of(p, machine)
    assert found is not None
    return found


def test_states_leave_the_device_and_weights_stay() -> None:
    kept, gone = held(run_of()), held(run_of(("host", "none")))
    assert gone["weights"] == kept["weights"]
    assert not {"optimizer", "master weights", "gradients", "optimizer work"} & gone.keys()
    # arXiv 2101.06840, section 3: of 16 bytes a parameter 2 stay, weights in 16 bits
    n = run_of().shape.n_params
    assert gone["weights"] == pytest.approx(2 * n, rel=1e-3)
    weights_gone = held(run_of(("host", "host")))
    assert "weights" not in weights_gone
    assert 0 < weights_gone["gathered weights"] < 0.5 * kept["weights"]


@pytest.mark.parametrize("devices", [1, 8])
def test_bytes_of_a_machine_do_not_depend_on_how_many_share_them(devices: int) -> None:
    p = run_of(("host", "host"), devices=devices, sharding="fsdp_full")
    found = offloading.elsewhere(p, configuration(p, DGX), float(held_params(configuration(p, DGX))))
    # float32 weight and two moments, a gradient in float32, a weight in 16 bits
    assert found["host"] == pytest.approx((12 + 4 + 2) * p.shape.n_params, rel=1e-3)
    stored = run_of(("nvme", "none"), devices=devices, sharding="fsdp_full")
    found = offloading.elsewhere(stored, configuration(stored, DGX), float(held_params(configuration(stored, DGX))))
    assert found["nvme"] == pytest.approx(12 * p.shape.n_params, rel=1e-3)
    assert found["host"] == pytest.approx(4 * p.shape.n_params, rel=1e-3)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize(("devices", "overlaps"), [(1, True), (8, True), (8, False)])
def test_engine_and_closed_form_agree(
    places: tuple[str, str], devices: int, overlaps: bool, accumulation: int
) -> None:
    changes = {"devices": devices, "sharding": "fsdp_full", "grad_accumulation": accumulation}
    p = run_of(places, **changes, overlap_gradients=overlaps)
    scenario = Scenario(name="x", title="x", workload="slm_training")
    engine = predict(scenario, WORKLOAD, p, DGX)[0].metrics["step_s"].value
    assert engine == pytest.approx(estimate([p], DGX)["step_s"][0], rel=0.03)


def test_what_lies_farther_away_takes_longer() -> None:
    runs = [run_of(places, micro_batch=1, sequence_tokens=64) for places in PLACES]
    device, host, drive, weights_too, _ = estimate(runs, DGX)["step_s"]
    assert device < host < drive
    assert host < weights_too


def test_an_update_on_the_host_by_hand() -> None:
    p = run_of(("host", "none"))
    n, memory = p.shape.n_params, DGX.memory.datasheet.bandwidth_bytes_per_s
    # gradient, weight and moments in float32, a weight in 16 bits: 4 + 8 + 16 + 2 bytes at 45 % of the bandwidth
    wanted = 30 * n / (0.45 * memory)
    assert estimate([p], DGX)["optimizer_s"][0] == pytest.approx(wanted, rel=0.02)


def test_a_model_too_large_for_a_card_trains_with_its_host() -> None:
    big = {"model": "llama_2_7b", "micro_batch": 1, "sequence_tokens": 512, "checkpointing": "full"}
    with pytest.raises(DoesNotFit):
        WORKLOAD.plan(run_of(**big), LAPTOP, 1)
    with pytest.raises(DoesNotFit, match=r"what is offloaded takes .* of each host memory and desktop_rtx4090 has"):
        WORKLOAD.plan(run_of(("host", "host"), **big), LAPTOP, 1)
    assert WORKLOAD.plan(run_of(("nvme", "host"), **big), LAPTOP, 1).phases


@pytest.mark.parametrize(
    ("places", "changes", "words"),
    [
        (("host", "none"), {"devices": 8}, "needs sharding zero_1 or fsdp_grad_op or fsdp_full"),
        (("host", "host"), {"devices": 8, "sharding": "zero_1"}, "offload_parameters host on several devices"),
        (("none", "host"), {}, "set offload_optimizer too"),
        (("host", "none"), {"optimizer": "muon"}, "not for muon"),
        (("host", "none"), {"devices": 2, "pipeline_parallel": 2}, "without pipeline stages"),
    ],
)
def test_what_is_not_described_is_said(places: tuple[str, str], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        WORKLOAD.plan(run_of(places, **changes), DGX, 1)


def test_a_processor_has_nowhere_else_to_put_them() -> None:
    with pytest.raises(PlanError, match="has no memory but the host's"):
        WORKLOAD.plan(run_of(("host", "none")), library.load_machine("laptop_pcie4", {"stack": "pytorch_cpu"}), 1)


def test_nothing_of_it_is_executed() -> None:
    with pytest.raises(ConfigError, match="offload_optimizer: host is simulated only"):
        run_job.check_executable(run_of(("host", "none"), model="tiny_3x64", precision="float32"))
