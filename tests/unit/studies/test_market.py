"""All that can be rented: offers of price lists as machines, what is left out, and the answer of a search over them."""

from __future__ import annotations

import datetime as dt
import json

import pytest

from sandtable.contracts import Ran, run_command
from sandtable.errors import ConfigError, UnknownName
from sandtable.hardware import library
from sandtable.hardware.lookup import offers
from sandtable.studies import cheapest, cheapest_answer
from sandtable.studies.market import Market, day, market

LISTS = library.price_lists()
STACK = "huggingface_pytorch_2_3"
ON_DEMAND = offers.offers_of(LISTS, "on_demand")
BY_NAME = {offer.machine: offer for offer in ON_DEMAND}


@pytest.fixture(scope="module")
def rented() -> Market:
    return market(STACK)


def test_every_accelerator_that_a_price_list_names_has_a_device_file_but_those_of_other_kinds() -> None:
    unknown = {offer.row.accelerator for offer in ON_DEMAND if offer.device is None} - {None}
    assert unknown == {"TPU v6e"}
    named = {device for prices in LISTS for device in prices.devices.values()}
    assert named <= library.device_files("accelerator").keys()


def test_an_offer_is_the_latest_price_and_the_lowest_of_all_regions() -> None:
    rows = [row for row in library.price_rows("aws", "p4d.24xlarge") if row.as_of.year == 2026]
    assert len(rows) > 1
    usd = [row.on_demand_usd_per_h for row in rows if row.on_demand_usd_per_h is not None]
    assert BY_NAME["aws_p4d_24xlarge"].price.usd_per_h == min(usd)


def test_an_instance_of_a_price_list_is_a_machine() -> None:
    machine = library.load_machine("hyperstack_h100_80g_sxm5_x8", {"stack": STACK})
    assert machine.accelerator is not None
    assert (machine.accelerator.n, machine.accelerator.device.name) == (8, "nvidia_h100_sxm")
    assert machine.price is not None
    assert (machine.price.usd_per_h, machine.price.kind, machine.price.region) == (19.2, "on_demand", "CANADA-1")
    assert machine.memory.datasheet.capacity_bytes == 1800 * 2**30
    changed = library.load_machine("hyperstack_h100_80g_sxm5_x8", {"accelerator.n": 4, "memory.capacity": "64 GiB"})
    assert changed.accelerator is not None
    assert (changed.accelerator.n, changed.memory.datasheet.capacity_bytes) == (4, 64 * 2**30)


def test_a_name_with_spot_takes_the_spot_price() -> None:
    machine = library.load_machine("verda_1a100_22v@spot")
    assert machine.price is not None
    assert (machine.price.kind, machine.price.usd_per_h) == ("spot", 0.4515)
    with pytest.raises(ConfigError, match="no spot price of lambda_8x_h100"):
        library.load_machine("lambda_8x_h100@spot")
    with pytest.raises(UnknownName, match=r"'spott'.*did you mean 'spot'"):
        library.load_machine("aws_p4d_24xlarge@spott")


def test_machines_made_alike_are_those_that_files_would_make(rented: Market) -> None:
    made = [machine for machine in rented.machines if machine.name in BY_NAME and machine.name.startswith("verda")]
    assert len(made) > 3
    for machine in made:
        loaded = library.offered(BY_NAME[machine.name], {"stack": STACK})
        for part in ("name", "title", "accelerator", "processor", "power", "price", "network"):
            assert getattr(machine, part) == getattr(loaded, part)
        assert machine.memory.datasheet == loaded.memory.datasheet


def test_what_is_left_out_is_counted(rented: Market) -> None:
    names = [machine.name for machine in rented.machines]
    assert len(names) == len(set(names)) > 60
    assert {"aws_p5_48xlarge", "lambda_gh200", "verda_1a100_22v"} <= set(names)
    assert "laptop_pcie4" not in names
    assert all(machine.price is not None for machine in rented.machines)
    newest = offers.newest(ON_DEMAND)
    assert all(machine.price and newest - machine.price.as_of < dt.timedelta(731) for machine in rented.machines)
    reasons = " ".join(rented.left_out)
    assert "owned, not rented" in reasons
    assert "priced before" in reasons
    assert "TPU v6e" in reasons


def test_older_prices_and_owned_machines_are_taken_when_asked_for(rented: Market) -> None:
    more = market(STACK, owned=True, since=dt.date(2020, 1, 1))
    names = {machine.name for machine in more.machines}
    assert {"laptop_pcie4", "aws_g5_xlarge"} <= names
    assert len(names) > len(rented.machines)
    assert day("2024-02-29", "--since") == dt.date(2024, 2, 29)
    with pytest.raises(ConfigError, match="--since needs a day such as"):
        day("yesterday", "--since")


def searched(*arguments: str) -> Ran:
    done = run_command("cheapest", "slm_1b_cloud", "--until", "tokens=20B", *arguments)
    assert "Traceback" not in done.err
    return done


def test_one_command_finds_what_eight_gpus_of_the_cheapest_provider_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    named = "hyperstack_h100_80g_sxm5_x8,aws_p4de_24xlarge,verda_1a100_22v"
    done = searched("--machines", named, "--most-devices", "8")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    answer = lines[: next(index for index, line in enumerate(lines) if line.startswith("  !")) + 1]
    assert len(answer) <= 8
    assert answer[0].startswith("Cheapest way to train slm_1b on 20B tokens")
    assert "Rent hyperstack_h100_80g_sxm5_x8, 19.2 USD/h on demand in CANADA-1, seen 2026-01-01." in " ".join(
        line.strip() for line in answer
    )
    assert "Next: " in done.out
    table = lines[len(answer) : next(index for index, line in enumerate(lines) if " considered, " in line)]
    assert max(map(len, table)) <= 80
    rows = [line.split() for line in table if "✔" in line]
    # a row is a line: nothing is folded
    assert [row[:3] for row in rows] == [["✔", "hyperstack_h100_80g_sxm5_x8", "8"]]


def test_everything_that_can_be_rented_is_looked_at(rented: Market) -> None:
    done = searched("--most-devices", "1", "--format", "json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    (chosen,) = [row for row in found["rows"] if row["chosen"]]
    # a price of the lists gives less than the 871 USD of the scenario's own machine
    assert chosen["cost low [USD]"] < chosen["cost [USD]"] < 230
    assert chosen["cost [USD]"] < chosen["cost high [USD]"]
    assert chosen["kind"] == "on_demand"
    assert found["notes"][0].endswith(f"{len(rented.machines)} machines")


def test_a_budget_without_its_unit_is_dollars() -> None:
    done = searched("--machines", "dgx_h100,aws_i3_2xlarge", "--most-devices", "8", "--budget", "2000")
    assert done.code == 0, done.err
    assert done.out.startswith("Fastest way within 2000 USD to train slm_1b")


def test_a_machine_that_cannot_do_the_work_is_left_out_with_its_reason() -> None:
    case = cheapest.scenarios.load("slm_1b_cloud", changes={"parameters.devices": 2, "parameters.micro_batch": 64})
    machines = [library.load_machine(name, {"stack": STACK}) for name in ("dgx_h100", "aws_i3_2xlarge")]
    found = cheapest.found_in(case, machines, {"tokens": 1e9}, most_devices=2)
    assert {found.outcome.machines[place].name for place in found.front} == {"dgx_h100"}
    assert cheapest_answer.answer(found).verdict.startswith("Use dgx_h100, ")


def test_many_reasons_are_cut() -> None:
    text = cheapest.counted({f"reason {n}": n for n in range(1, 9)}, most=2)
    assert text == "8 reason 8; 7 reason 7; 21 for 6 other reasons"
