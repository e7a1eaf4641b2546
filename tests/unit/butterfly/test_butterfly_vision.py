"""The workload butterfly_vision: what may be asked, what a plan holds, and what its answers say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from sandtable import units
from sandtable.contracts import run_command
from sandtable.hardware import Machine, library
from sandtable.results import point
from sandtable.runs.predict import foresee
from sandtable.workload import scenarios
from sandtable.workload.seam import workload_named
from sandtable_kernels.structured.structures import STRUCTURES
from sandtable_workloads.butterfly.butterfly_parameters import ButterflyVision, Structure
from sandtable_workloads.butterfly.layer_demand import BACKWARD, FORWARD, OPTIMIZER
from sandtable_workloads.butterfly.vision_memory import memory_of, what_fits
from sandtable_workloads.butterfly.vision_plan import plan_of

WORKLOAD = workload_named("butterfly_vision")
PHONE = "butterfly_mobilenet_phone"


def given(**changes: Any) -> ButterflyVision:
    return ButterflyVision.model_validate(changes, context=units.AT_EDGE)


@pytest.fixture(scope="module")
def laptop() -> Machine:
    return library.load_machine("laptop_pcie4")


def test_every_structure_that_kernels_have_can_be_asked_for() -> None:
    assert {*get_args(Structure)} == {"butterfly", *STRUCTURES}


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("structure=fastfood", "should be 'dense', 'butterfly'"),
        ("network=mobilenet", "should be 'mobilenet_v1', 'shufflenet_v2'"),
        ("width=0.001", "no channel behind its first convolution: write 0.03125 or more"),
        ("resolution=16", "write a resolution of 32 or more"),
        ("base=1", "greater than or equal to 2"),
        ("n_in=0", "greater than or equal to 1"),
        ("n_in=64", "n_in is of one layer: write 'network: layer', or leave it out"),
        ("precision=float16", "should be 'float32' or 'bfloat16'"),
        ("alpha=0.5", "did you mean 'width'?"),
        ("n_classes=10", "did you mean 'classes'?"),
    ],
)
def test_a_bad_setting_is_answered_in_one_sentence(setting: str, sentence: str, in_tmp: Path) -> None:
    ran = run_command("simulate", PHONE, "--set", f"parameters.{setting}")
    assert ran.code == 2
    assert sentence in ran.error
    assert f"parameters.{setting.partition('=')[0]}" in ran.error or "parameters" in ran.error


def test_a_layer_has_no_batch(in_tmp: Path) -> None:
    ran = run_command("simulate", "butterfly_layer", "--machine", "laptop_pcie4", "--set", "parameters.batch=2")
    assert ran.code == 2
    assert "batch is of a whole network: leave it out, 'rows' says how much a layer is given" in ran.error


def test_a_norm_cannot_learn_from_one_number() -> None:
    with pytest.raises(ValueError, match="write 'batch: 2' or a larger resolution"):
        given(mode="training", resolution=32)
    given(mode="training", resolution=64)
    given(mode="training", resolution=32, batch=2)


def test_parameters_survive_being_written_with_all_their_defaults() -> None:
    for each in (given(), given(network="layer", n_in=8)):
        assert given(**each.model_dump(mode="json")) == each


# --- plans -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["mobilenet_v1", "shufflenet_v2", "mobilenet_v3_small"])
def test_a_plan_multiplies_as_often_as_its_network(network: str, laptop: Machine) -> None:
    p = given(network=network, structure="dense", batch=3)
    plan = plan_of(p, laptop)
    products = [op for op, _ in plan.ops() if op.name in ("conv", "depthwise", "pointwise", "linear")]
    flops = sum(op.flops for op in products)
    # what a convolution lays out for a product is moved, and counted as an operation each
    assert flops == pytest.approx(2 * p.built().multiply_accumulates(3), rel=0.01)


def test_a_butterfly_s_plan_multiplies_as_often_as_its_levels(laptop: Machine) -> None:
    p = given(network="layer", n_in=64, rows=7)
    (op,) = plan_of(p, laptop).phases[0].steps[0].ops
    assert op.flops == 2 * 7 * 4 * 64 * 3


def test_equal_steps_and_nothing_else_are_planned(laptop: Machine) -> None:
    plan = plan_of(given(steps=12, warmup_steps=5), laptop)
    assert [(phase.name, phase.n_steps) for phase in plan.phases] == [("main", 12)]


def test_a_step_of_training_has_three_sections(laptop: Machine) -> None:
    ops = plan_of(given(mode="training", batch=4), laptop).phases[0].steps[0].ops
    sections = list(dict.fromkeys(op.section for op in ops))
    assert sections == [FORWARD, BACKWARD, OPTIMIZER]
    assert {op.section for op in plan_of(given(batch=4), laptop).phases[0].steps[0].ops} == {""}


def test_fewer_threads_take_longer() -> None:
    times = {}
    for threads in (1, 2, 8):
        changes = {"parameters.threads": threads, "parameters.batch": 8}
        case = scenarios.load("butterfly_mobilenet", machine="laptop_pcie4", changes=changes)
        found = foresee(case.scenario, case.workload, case.parameters, case.machine)
        times[threads] = found.prediction.metrics["latency_s.mean"].value
    assert times[1] > times[2] > times[8]


# --- memory ------------------------------------------------------------------------------------------------------


def test_weights_are_counted_once_and_momentum_beside_them(laptop: Machine) -> None:
    p = given(mode="training", batch=4)
    held, network = memory_of(p, laptop), p.built()
    # a norm counts its batches in 8 bytes
    assert held["weights"] == 4 * (network.parameters + network.buffers) + 8 * len(network.of_kind("norm"))
    assert held["optimizer"] == 4 * network.parameters
    assert "optimizer" not in memory_of(given(mode="training", batch=4, momentum=0), laptop)


def test_a_plain_layer_holds_its_rows_results_and_weights(laptop: Machine) -> None:
    p = given(network="layer", structure="dense", n_in=32, n_out=64, rows=5)
    assert memory_of(p, laptop) == {"weights": 4 * 32 * 64, "activations": 4 * 5 * (32 + 64)}
    narrow = given(network="layer", structure="dense", n_in=32, n_out=64, rows=5, precision="bfloat16")
    assert memory_of(narrow, laptop)["weights"] == 2 * 32 * 64


def test_activations_grow_with_the_batch_and_weights_do_not(laptop: Machine) -> None:
    small, large = (memory_of(given(batch=batch), laptop) for batch in (16, 32))
    assert large["activations"] == 2 * small["activations"]
    assert large["weights"] == small["weights"]


def test_what_does_not_fit_is_refused_with_a_batch_that_does(in_tmp: Path, laptop: Machine) -> None:
    settings = {"network": "mobilenet_v1", "batch": 65536, "mode": "training"}
    options = [part for name, value in settings.items() for part in ("--set", f"parameters.{name}={value}")]
    ran = run_command("simulate", PHONE, *options)
    assert ran.code == 5
    machine = library.load_machine("phone_snapdragon_8_gen_3")
    (advice,) = what_fits(given(**settings), machine)
    batch = int(advice.removeprefix("batch="))
    fits = [sum(memory_of(given(**settings | {"batch": n}), machine).values()) for n in (batch, 2 * batch)]
    assert fits[0] <= machine.memory.datasheet.capacity_bytes < fits[1]
    assert f"This would fit: {advice}" in " ".join(ran.out.split())


# --- answers -----------------------------------------------------------------------------------------------------


def test_a_subject_names_the_network_its_counts_and_how_much_a_step_does(laptop: Machine) -> None:
    text = WORKLOAD.subject(given(batch=8, mode="training"), laptop)
    assert text == (
        "MobileNetV1 1.0 @ 128, butterfly base 4: 23.6M multiply-adds, 1.21M parameters; batch 8, training, float32"
    )


def test_a_layer_s_subject_names_what_its_structure_has_of_its_own(laptop: Machine) -> None:
    text = WORKLOAD.subject(given(network="layer", structure="low_rank", n_in=256, rows=4), laptop)
    assert text == (
        "256 x 256 layer, low rank rank 8: 4.1k multiply-adds a row, 4.1k parameters; 4 rows, inference, float32"
    )


def test_rates_and_prices_are_of_images(laptop: Machine) -> None:
    known = {"latency_s.mean": point(0.5, "s")}
    found = WORKLOAD.derived(given(batch=4), laptop, known)
    assert laptop.price is not None
    assert found["images_per_s"].value == 8
    assert found["usd_per_million_images"].value == pytest.approx(laptop.price.usd_per_h / 3600 / 8 * 1e6)
    assert found["usd_per_million_images"].unit == "USD/million images"
    of_layer = WORKLOAD.derived(given(network="layer", rows=16), laptop, known)
    assert of_layer["rows_per_s"].value == 32


def test_whatif_compares_with_the_dense_network_of_as_many_multiply_adds(in_tmp: Path) -> None:
    ran = run_command("whatif", PHONE, "--set", "parameters.structure=dense", "--set", "parameters.width=0.25")
    assert ran.code == 0, ran.err
    assert re.search(r"\d times as many images/s", ran.out)
    assert "→ dense: 13.6M multiply-adds" in " ".join(ran.out.split())
    assert max(map(len, ran.out.splitlines())) <= 80


def test_a_measured_machine_that_never_timed_layers_is_told_how(machine: Machine) -> None:
    workload, p = workload_named("butterfly_vision"), ButterflyVision()
    machine = machine.model_copy(update={"environment": {"cpu": "one that calibrate saw"}})
    assert machine.processor.fitted is not None
    assert "calibrate --only vision" in " ".join(workload.caveats(p, machine))
    timed = {"image_linear": {}}
    fitted = machine.processor.fitted.model_copy(update={"operators": timed})
    with_layers = machine.processor.model_copy(update={"fitted": fitted})
    assert not workload.caveats(p, machine.model_copy(update={"processor": with_layers}))
    assert not workload.caveats(p, library.load_machine("laptop_pcie4"))
