"""What a search pays: machines whole or in parts, on demand or at spot prices; and what comes nearest to fitting."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sandtable import units
from sandtable.contracts import run_command
from sandtable.errors import DoesNotFit
from sandtable.hardware import Machine, PriceList, library
from sandtable.hardware.library import at_spot
from sandtable.studies import cheapest
from sandtable.studies.cheapest import Found
from sandtable.workload import scenarios
from sandtable.workload.seam import Scenario
from sandtable_workloads.training.choices.scaling_law import law_named
from sandtable_workloads.training.training_parameters import SlmTraining
from sandtable_workloads.transformer.presets import shape_named

P4D = library.load_machine("aws_p4d_24xlarge", {"stack": "huggingface_pytorch_2_3"})
RUN = {"model": "slm_500m", "micro_batch": 8, "devices": 8}


def searched(
    run: dict[str, Any] = RUN, *, machine: Machine = P4D, until: float | None = None, **options: Any
) -> Found:
    scenario = Scenario(name="run", title="Run", workload="slm_training", parameters=run)
    case = scenarios.case_of(scenario, machine=machine)
    amounts = {} if until is None else {"tokens": until}
    return cheapest.found_in(case, [machine], amounts, **({"most_devices": 16} | options))


def offered(**options: Any) -> pd.DataFrame:
    """What can run, with its own time and dollars."""
    outcome = searched(**options).outcome
    found = outcome.to_frame().query("dropped == ''")
    return found.assign(usd_per_h=found["cost_usd"] / found["time_s"] * 3600)


def test_a_machine_is_paid_for_whole_or_in_parts() -> None:
    assert P4D.price is not None
    price = P4D.price.usd_per_h
    whole, part = offered(), offered(parts=True)
    machines = whole["devices"] / 8
    assert whole["usd_per_h"].to_numpy() == pytest.approx(price * np.maximum(1, machines))
    assert part["usd_per_h"].to_numpy() == pytest.approx(price * machines)
    assert (whole["time_s"] == part["time_s"]).all()


def test_paid_for_whole_a_part_of_a_machine_is_never_chosen_when_all_of_it_is_faster() -> None:
    whole, part = offered(), offered(parts=True)
    assert whole["devices"][whole["cost_usd"].idxmin()] == 8
    assert part["devices"][part["cost_usd"].idxmin()] < 8


def test_the_next_dollar_lowers_the_loss_by_loss_per_usd() -> None:
    tokens = 5e9
    run = SlmTraining(**RUN)
    law = law_named(run.scaling_law)
    n_params = law.params_of(shape_named(run.model))
    found = offered(until=tokens)
    for usd, loss_per_usd in found[["cost_usd", "loss_per_usd"]].iloc[:: len(found) // 10].to_numpy():
        more = tokens * (usd + 1) / usd
        assert loss_per_usd == pytest.approx(law.loss(n_params, tokens) - law.loss(n_params, more), rel=0.02)


def test_spot_prices_are_the_lowest_of_the_instance() -> None:
    machine = at_spot(P4D)
    assert machine.price is not None
    rows = library.price_rows("aws", "p4d.24xlarge")
    assert len(rows) > 1
    assert machine.price.usd_per_h == min(row.spot_usd_per_h for row in rows if row.spot_usd_per_h is not None)
    assert machine.price.kind == "spot"
    assert P4D.price is not None
    assert machine.price.usd_per_h < P4D.price.usd_per_h
    assert machine.model_copy(update={"price": P4D.price}) == P4D


@pytest.mark.parametrize("name", ["lambda_8x_h100", "oci_bm_gpu4_8", "dgx_b200"])
def test_a_machine_without_a_spot_price_has_none(name: str) -> None:
    assert at_spot(library.load_machine(name)).price is None


@pytest.mark.parametrize("name", sorted(library.device_files("machine")))
def test_every_instance_is_in_its_price_list_at_the_price_of_the_machine(name: str) -> None:
    price = library.load_machine(name).price
    if price is None or price.instance is None:
        return
    assert price.provider is not None
    assert price.usd_per_h in {
        row.on_demand_usd_per_h for row in library.price_rows(price.provider, price.instance)
    }


def test_price_rows_of_an_unknown_provider_are_none() -> None:
    assert library.price_rows("nobody", "p4d.24xlarge") == ()
    aws = library.load_component("prices", "aws")
    assert isinstance(aws, PriceList)
    assert len(library.price_rows("aws", "p4d.24xlarge")) < len(aws.price)


def test_the_nearest_of_what_does_not_fit_is_named_with_what_it_needs() -> None:
    run = {"model": "llama_3_70b", "micro_batch": 1, "devices": 8}
    # eight devices, as finely split as they can be, come nearest
    nearest = "nearest: devices 8, .* of the 40 GiB of a device of aws_p4d_24xlarge"
    with pytest.raises(DoesNotFit, match=nearest):
        searched(run, most_devices=8)


def test_the_command_takes_parts_and_spot_prices() -> None:
    asked = (
        "cheapest", "slm_1b_cloud", "--machines", "aws_p4de_24xlarge", "--until", "tokens=1e9", "--most-devices", "8",
        "--format", "json",
    )  # fmt: skip
    prices = {}
    for options in ((), ("--parts",), ("--spot",)):
        done = run_command(*asked, *options)
        assert done.code == 0, done.err
        rows = json.loads(done.out)["rows"]
        prices[options] = min(float(row["cost [USD]"]) for row in rows)
    assert prices[("--parts",)] < prices[()]
    # us-east-1: 9.31195 of 27.44705 USD an hour
    assert prices[("--spot",)] == pytest.approx(prices[()] * 9.31195 / 27.44705)


def test_what_is_chosen_is_what_simulate_then_predicts(in_tmp: Path) -> None:
    machines = ("--machines", "aws_p4d_24xlarge,aws_p4de_24xlarge")
    done = run_command("cheapest", "slm_1b_cloud", *machines, "--within", "12 h", "--format", "json")
    assert done.code == 0, done.err
    table = json.loads(done.out)
    (chosen,) = [row for row in table["rows"] if row["chosen"]]
    (line,) = [note for note in table["notes"] if note.startswith("the chosen one: ")]
    arguments = shlex.split(line.removeprefix("the chosen one: "))
    simulated = run_command("simulate", "slm_1b_cloud", *arguments, "--format", "json")
    assert simulated.code == 0, simulated.err
    metrics = json.loads(simulated.out)["metrics"]
    # the event engine against the closed form
    assert metrics["training_s"]["value"] == pytest.approx(3600 * chosen["time [h]"], rel=0.03)
    assert metrics["training_usd"]["value"] == pytest.approx(chosen["cost [USD]"], rel=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--until", "tokens=nan"), "NAME=NUMBER"),
        (("--until", "tokens=inf"), "NAME=NUMBER"),
        (("--until", "loss=1e999"), "NAME=NUMBER"),
        (("--until", "tokens=0"), "more than 0"),
        (("--until", "tokens=10 GB"), "NAME=NUMBER"),
        (("--until", "tokens=1e9", "--until", "tokens=2e9"), "names tokens twice"),
        (("--within", "-5 s"), "above zero"),
        (("--budget", "0 USD"), "above zero"),
    ],
)
def test_amounts_that_are_none_are_refused(arguments: tuple[str, ...], message: str) -> None:
    done = run_command("cheapest", "slm_1b_cloud", "--machines", "dgx_h100", "--most-devices", "8", *arguments)
    assert done.code == 2, done.err
    assert message in done.err


@pytest.mark.parametrize(
    ("text", "value"), [("10B", 10e9), ("1.5T", 1.5e12), ("500 M", 5e8), ("2e9", 2e9), ("7", 7)]
)
def test_counts_are_read_with_a_prefix(text: str, value: float) -> None:
    assert units.parse_count(text) == value


def test_a_machine_that_costs_nothing_is_the_cheapest() -> None:
    done = run_command(
        "cheapest", "slm_1b_cloud", "--until", "tokens=1e9", "--most-devices", "8", "--format", "json",
        "--set", "machine.price.hour=0 USD/h",
    )  # fmt: skip
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["rows"]
    assert row["cost [USD]"] == 0
    assert row["factor"] is None


def test_no_spot_price_is_a_reason() -> None:
    done = run_command("cheapest", "slm_1b_cloud", "--machines", "lambda_8x_h100", "--spot")
    assert done.code == 5
    assert "no price for lambda_8x_h100" in done.err
