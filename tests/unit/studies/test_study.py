"""Studies: how they expand into points, what a point changes, and what suites make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable.contracts import run_command
from sandtable.engine.simulation import run
from sandtable.errors import ConfigError, UnknownName
from sandtable.hardware import Machine, library
from sandtable.model.cost_model import CostModel
from sandtable.runs import run_folder
from sandtable.studies import study
from sandtable.studies.study import Part, Study
from sandtable.workload import scenarios
from sandtable.workload.seam import Execution, Scenario, workload_named

TINY = {"workload": "flash_inference", "machine": "laptop_pcie4", "parameters": {"tokens": 4, "window": 1}}


def a_study(*cases: dict[str, Any], **fields: Any) -> Study:
    return Study.model_validate({"name": "s", "title": "S", "cases": cases} | TINY | fields)


def parameters_of(found: Study) -> list[dict[str, Any]]:
    base = found.scenario()
    return [found.scenario_of(point, base).parameters for point in found.points()]


# --- points ----------------------------------------------------------------------------------------------------


def test_lists_multiply_and_the_rest_is_shared() -> None:
    found = a_study({"rung": ["window", "bundling"], "window": [2, 3]}, {"rung": "naive", "tokens": 9})
    assert parameters_of(found) == [
        {"tokens": 4, "window": 2, "rung": "window"},
        {"tokens": 4, "window": 3, "rung": "window"},
        {"tokens": 4, "window": 2, "rung": "bundling"},
        {"tokens": 4, "window": 3, "rung": "bundling"},
        {"tokens": 9, "window": 1, "rung": "naive"},
    ]
    names = [point.name for point in found.points()]
    assert names[:2] == ["window-window_2", "window-window_3"]
    assert names[-1] == "naive-tokens_9"


def test_axes_apply_to_every_case_that_does_not_set_them() -> None:
    found = a_study({"rung": "naive"}, {"rung": "hybrid", "tokens": 7}, axes={"tokens": [1, 2]})
    assert [point.name for point in found.points()] == ["naive-tokens_1", "naive-tokens_2", "hybrid-tokens_7"]


def test_a_labelled_value_makes_several_changes_at_once() -> None:
    found = a_study(axes={"length": {"short": {"tokens": 2, "cold_tokens": 1}, "long": {"tokens": 9}}})
    assert [point.labels for point in found.points()] == [{"length": "short"}, {"length": "long"}]
    assert parameters_of(found) == [{"tokens": 2, "window": 1, "cold_tokens": 1}, {"tokens": 9, "window": 1}]


def test_the_same_case_twice_is_one_point() -> None:
    assert len(list(a_study({"rung": "naive"}, {"rung": ["naive", "naive"]}).points())) == 1


def test_a_study_of_nothing_is_its_base() -> None:
    assert [point.name for point in a_study().points()] == ["base"]


def test_points_come_one_by_one() -> None:
    endless = a_study(axes={name: list(range(1000)) for name in ("a", "b", "c", "d")})
    points = endless.points()
    assert next(points).changes == {"a": 0, "b": 0, "c": 0, "d": 0}
    assert next(points).changes == {"a": 0, "b": 0, "c": 0, "d": 1}


@given(st.lists(st.sampled_from(["3 %", "1 MiB", 4, 1.5, "float16", "a/b"]), min_size=1, max_size=4, unique=True))
def test_names_of_points_are_names_of_scenarios(values: list[object]) -> None:
    found = a_study({"active_frac": values})
    base = found.scenario()
    for point in found.points():
        scenario = found.scenario_of(point, base)
        assert Scenario.model_validate(scenario.model_dump(by_alias=True)) == scenario


@given(st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True)))
def test_there_are_as_many_points_as_combinations(axes: dict[str, list[int]]) -> None:
    combinations = 1
    for values in axes.values():
        combinations *= len(values)
    first, second = (list(a_study(axes=axes).points()) for _ in (0, 1))
    assert first == second
    assert len(first) == len({point.name for point in first}) == combinations


# --- what a change leads to --------------------------------------------------------------------------------------


def test_changes_reach_parameters_scenario_machine_and_price() -> None:
    changes = {
        "parameters.window": 7,
        "seed": 9,
        "thresholds.latency_s.p95": "< 1 s",
        "machine.storage": "samsung_990_pro_2tb",
        "price": "9 USD/h",
    }
    (case,) = a_study(changes).resolved()
    assert case.parameters.window == 7  # type: ignore[attr-defined]
    assert (case.scenario.seed, case.scenario.thresholds) == (9, {"latency_s.p95": "< 1 s"})
    assert case.machine.storage.name == "samsung_990_pro_2tb"
    assert case.machine.price is not None
    assert case.machine.price.usd_per_h == 9


def test_a_path_with_sections_leads_into_them() -> None:
    assert study.part_of("parameters.a.b") == (Part.parameters, "a.b")
    assert study.part_of("a") == (Part.parameters, "a")
    assert study.part_of("machine.storage") == (Part.machine, "machine.storage")


def test_a_machine_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = library.load_machine
    monkeypatch.setattr(library, "load_machine", lambda name, *rest: loaded.append(name) or load(name, *rest))
    found = a_study(axes={"machine": ["laptop_pcie4", "desktop_rtx4090"], "window": [1, 2, 3]})
    names = [case.machine.name for case in found.resolved()]
    assert names == ["laptop_pcie4"] * 3 + ["desktop_rtx4090"] * 3
    assert loaded == ["laptop_pcie4", "desktop_rtx4090"]


def test_a_loaded_machine_is_taken_as_it_is(machine: Machine) -> None:
    (case,) = a_study({"machine": machine}).resolved()
    assert case.machine is machine
    assert case.scenario.machine == machine.name
    with pytest.raises(ConfigError, match="is loaded already: storage cannot be changed"):
        list(a_study({"machine": machine, "machine.storage": "generic_flash"}).resolved())


def test_spot_prices_are_an_axis() -> None:
    found = a_study(machine="aws_p4d_24xlarge", axes={"price": ["on_demand", "spot", "1 USD/h"]})
    prices = [case.machine.price.usd_per_h for case in found.resolved() if case.machine.price is not None]
    assert prices[0] > prices[1] > prices[2] == 1


def test_a_base_is_a_scenario_changed_by_what_the_study_says() -> None:
    base = scenarios.read("flash_laptop")
    same = Study(name="s", base="flash_laptop").scenario()
    assert same == base
    changed = Study(name="s", base="flash_laptop", seed=5, parameters={"window": 2}).scenario()
    assert changed == base.model_copy(update={"seed": 5, "parameters": base.parameters | {"window": 2}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cases": [{"wnidow": 2}]}, r"wnidow: unknown field \(did you mean 'window'"),
        ({"workload": None}, "workload"),
        ({"base": "flash_dem"}, r"no scenario named 'flash_dem' \(did you mean 'flash_demo'"),
        ({"axes": {"tokens": {"a": 1, "A": 2}}}, "two points are named 'a'"),
        ({"axes": {"machine": ["laptop_pci"]}}, "no machine named 'laptop_pci'"),
    ],
)
def test_what_is_no_point_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, UnknownName), match=message):
        list(a_study(**fields).resolved())


# --- suites ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(scenarios.suite_files()))
def test_every_suite_loads_and_its_cases_have_names_of_their_own(name: str, machine: Machine) -> None:
    suite = study.load(name)
    assert suite.name == name
    found = list(suite.changed({"machine": "dgx_h100" if suite.needs_accelerator else machine}).resolved())
    assert len(found) == len({case.scenario.name for case in found}) >= 5


def test_the_quick_suite_climbs_the_ladder() -> None:
    suite = study.load("flash-quick")
    rungs = [parameters["rung"] for parameters in parameters_of(suite)]
    assert rungs == ["naive", "hybrid", "predictor", "window", "bundling"]
    assert suite.baseline == next(suite.points()).name


def test_a_suite_that_is_not_there() -> None:
    with pytest.raises(UnknownName, match=r"no suite named 'flash-quik' \(did you mean 'flash-quick'"):
        study.load("flash-quik")


def test_a_baseline_is_one_of_the_points(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("name: s\nworkload: flash_inference\naxes: {window: [1, 2]}\nbaseline: window_3\n")
    with pytest.raises(UnknownName, match=r"no point to compare others with named 'window_3' \(did you mean"):
        study.load(str(file))


def test_a_suite_named_by_its_path_is_kept_beside_other_runs(
    machine: Machine, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = workload_named("flash_inference")

    def execute(parameters: Any, hardware: Machine, seed: int, context: Any) -> Execution:
        plan = workload.plan(parameters, hardware, seed)
        return Execution(recorder=run(plan, CostModel(hardware)).recorder, memory_bytes=plan.memory_bytes)

    monkeypatch.setattr(workload, "execute", execute)
    monkeypatch.setattr(workload, "prepare", lambda *_: None)
    monkeypatch.setattr("sandtable.runs.measure.probe", lambda *_: {})
    library.save_component(machine, Path("mine.yaml"))
    suite = in_tmp / "deep" / "suite.yaml"
    suite.parent.mkdir()
    suite.write_text(
        "name: my suite\nworkload: flash_inference\nmachine: mine.yaml\nrepeats: 1\n"
        "parameters: {geometry: opt_mini, tokens: 2}\naxes: {window: [1, 2]}\nbaseline: window_1\n"
    )
    done = run_command("check", "--suite", str(suite), "--full")
    assert done.code == 0, done.err
    assert "times as fast as window_1" in done.out
    assert "1 pair: 100 % of the measured ratios" in done.out
    (base,) = run_folder.list_runs()
    assert base.path.parent == run_folder.RUNS
    assert base.path.name.endswith("-my_suite")
    assert len(run_folder.list_runs(base.path)) == 2
