"""Scenarios: loading and changing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable.errors import ConfigError, UnknownName
from sandtable.hardware import Machine, library
from sandtable.workload import scenarios

TEXT = """\
schema: 1
name: mine
title: Mine
workload: flash_inference
machine: laptop_pcie4
parameters:
  geometry: opt_mini
  tokens: 3
"""


@pytest.fixture
def mine(in_tmp: Path) -> str:
    Path("mine.yaml").write_text(TEXT)
    return "mine.yaml"


@pytest.mark.parametrize("name", sorted(scenarios.files()))
def test_every_ready_made_scenario_loads(name: str, machine: Machine, in_tmp: Path) -> None:
    library.save_component(machine.model_copy(update={"name": "this_machine"}), Path("this_machine.yaml"))
    case = scenarios.load(name)
    assert case.scenario.name == name
    assert case.scenario.title.rstrip()
    assert case.workload.name == case.scenario.workload


def test_scenarios_and_suites_are_kept_apart() -> None:
    assert "flash_demo" in scenarios.files()
    assert "flash-quick" in scenarios.suite_files()
    assert not scenarios.files().keys() & scenarios.suite_files().keys()


# --- settings ----------------------------------------------------------------------------------------------


def test_settings_reach_scenario_parameters_and_machine(mine: str) -> None:
    settings = [
        "parameters.window=7",
        "seed=9",
        "machine.storage=samsung_990_pro_2tb",
        "machine.price.hour=9 USD/h",
    ]
    case = scenarios.load(mine, changes=scenarios.changes_of(settings))
    assert case.parameters.window == 7  # type: ignore[attr-defined]
    assert case.scenario.seed == 9
    assert case.machine.storage.name == "samsung_990_pro_2tb"
    assert case.machine.price is not None
    assert case.machine.price.usd_per_h == 9.0


def test_a_setting_is_marked_as_the_users_own(mine: str) -> None:
    case = scenarios.load(mine, changes=scenarios.changes_of(["machine.power.max=99 W"]))
    assert case.machine.sources["power.max"] == "set by the user"


def test_the_machine_can_be_replaced(mine: str) -> None:
    assert scenarios.load(mine, machine="desktop_rtx4090").machine.name == "desktop_rtx4090"
    assert scenarios.load(mine).machine.name == "laptop_pcie4"


def test_defaults_are_filled_in(mine: str) -> None:
    case = scenarios.load(mine)
    assert case.parameters.rung == "bundling"  # type: ignore[attr-defined]
    assert case.scenario.repeats == 3
    assert case.scenario.thresholds == {}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("a=1", 1),
        ("a=1.5", 1.5),
        ("a=3 %", "3 %"),
        ("a=no", "no"),
        ("a=[1, 2]", [1, 2]),
        ("a=", None),
        ("a=b=c", "b=c"),
    ],
)
def test_a_value_is_read_as_yaml(setting: str, value: object) -> None:
    assert scenarios.parse_setting(setting) == ("a", value)


@given(st.text(alphabet="abc.=[]{}:,'\"# ", max_size=12))
def test_any_setting_is_read_or_refused_with_a_sentence(text: str) -> None:
    error = ""
    try:
        dotted, _ = scenarios.parse_setting(text)
    except ConfigError as refused:
        error = str(refused)
    if error:
        assert "--set" in error
        assert "\n" not in error
    else:
        assert dotted == text.partition("=")[0].strip()


@pytest.mark.parametrize("setting", ["window", "=5", ""])
def test_a_setting_needs_a_path_and_a_value(setting: str) -> None:
    with pytest.raises(ConfigError, match="--set needs PATH=VALUE"):
        scenarios.parse_setting(setting)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(UnknownName, match=r"no scenario named 'flash_dem' \(did you mean 'flash_demo'"):
        scenarios.load("flash_dem")


def test_a_scenario_of_ones_own_is_found_by_name(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = in_tmp / "own"
    folder.mkdir()
    (folder / "mine.yaml").write_text(TEXT)
    monkeypatch.setenv("SANDTABLE_PATH", str(folder))
    assert scenarios.load("mine").scenario.title == "Mine"


@pytest.mark.parametrize("name", ["my_llama", "my_llama/config.json", "./my_llama"])
def test_a_model_lies_beside_the_scenario_that_names_it(name: str, in_tmp: Path) -> None:
    folder = Path("elsewhere/my_llama")
    folder.mkdir(parents=True)
    config = '{"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, '
    (folder / "config.json").write_text(config + '"num_attention_heads": 2, "vocab_size": 100}')
    Path("elsewhere/s.yaml").write_text(TEXT.replace("opt_mini", name))
    shape = scenarios.load("elsewhere/s.yaml").parameters.shape  # type: ignore[attr-defined]
    assert (shape.name, shape.n_layers, shape.d_model) == ("my_llama", 2, 64)
