"""Every shipped scenario asks a question, and `simulate` answers it in at most eight lines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sandtable import units
from sandtable.contracts import run_command
from sandtable.errors import PlanError
from sandtable.hardware import library
from sandtable.runs.answers.answer_card import answered
from sandtable.runs.answers.caveats import caveat_of, largest, main_seconds
from sandtable.runs.predict import foresee
from sandtable.workload import scenarios

# where a scenario is about the machine at hand, it is asked of this one
STANDS_IN = "laptop_pcie4"
NAMES = sorted(scenarios.files())


def machine_of(name: str) -> str | None:
    return STANDS_IN if scenarios.read(name).machine == library.THIS_MACHINE else None


@pytest.mark.parametrize("name", NAMES)
def test_a_title_is_one_question_on_one_line(name: str) -> None:
    title = scenarios.read(name).title
    assert re.fullmatch(r"[^?]*\?", title)
    assert len(title) <= 80


@pytest.mark.parametrize("name", NAMES)
def test_simulate_answers_in_eight_lines_what_was_asked_of_what(name: str, in_tmp: Path) -> None:
    options = [] if machine_of(name) is None else ["--machine", STANDS_IN]
    ran = run_command("simulate", name, *options)
    if "names no link between processes" in ran.err:
        assert ran.code == PlanError.exit_code
        return
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    case = scenarios.load(name, machine=machine_of(name))
    assert len(lines) <= 8
    assert max(map(len, lines)) <= 80
    assert lines[0] == case.scenario.title
    said = " ".join(line.strip() for line in lines)
    parameters: Any = case.parameters
    shape = getattr(parameters, "shape", None)
    n_params = getattr(parameters, "n_params", None) or (shape.n_params if shape else parameters.built().parameters)
    assert f"{units.format_count(n_params)} parameters" in said
    assert case.machine.title in said
    assert case.machine.stack is not None
    assert case.machine.stack.title in said
    headline = r"(\d tokens/s|([Ll]atency|[Ff]it|[Cc]ampaign) [\d.]+ ([mu]?s|min|h))"
    assert re.search(headline + r" \(90 %: [\d. ]+ (([mu]?s|min|h) )?to [\d. ]+", said)
    assert re.search(r"memory [\d.]+ ([MK]iB )?of [\d.]+ GiB", said)
    assert case.machine.price is None or " USD" in said
    assert re.search(r"Bound by [\w ]+, \d+ % of the (time|campaign)", said)
    assert "Bound by compute" not in said or re.search(r"Bound by compute, \d+ % of the time, \d+ % in [a-z]", said)
    assert said.count("! ") == 1
    assert ("Yes. " in said) == case.scenario.title.startswith(("Does", "Will"))


# --- caveats -----------------------------------------------------------------------------------------------------


def test_the_largest_guess_moves_the_headline_by_its_law_s_miss_times_its_share() -> None:
    case = scenarios.load("flash_rtx4090")
    found = foresee(case.scenario, case.workload, case.parameters, case.machine)
    seconds = main_seconds(found)
    guess = largest(found.prediction.guesses, case.machine, seconds)
    assert guess is not None
    assert guess.name == "samsung_990_pro_2tb: datasheet.read_latency"
    # as if every read took as much longer as the law of storage may miss
    share = sum(part for source, part in seconds.items() if source.resource == "storage") / sum(seconds.values())
    source = next(source for source in seconds if source.resource == "storage")
    whole = (source.own.above**2 + source.common.above**2) ** 0.5
    assert guess.miss.above == pytest.approx(share * whole)


def test_what_no_time_follows_from_is_no_guess_that_matters() -> None:
    case = scenarios.load("flash_rtx4090")
    seconds = main_seconds(foresee(case.scenario, case.workload, case.parameters, case.machine))
    assert largest(["desktop_rtx4090: price.hour", "desktop_rtx4090: power.max"], case.machine, seconds) is None
    assert largest(["samsung_990_pro_2tb: datasheet.read_latency"], case.machine, {}) is None


def test_what_a_workload_says_comes_before_every_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    case = scenarios.load("flash_rtx4090")
    found = foresee(case.scenario, case.workload, case.parameters, case.machine)
    monkeypatch.setattr(type(case.workload), "caveats", lambda *_: ["a sparse model must exist"])
    assert caveat_of(found.prediction, case, main_seconds(found)) == "a sparse model must exist"


def test_software_that_is_best_case_says_so() -> None:
    case = scenarios.load("slm_100m_a100", changes={"stack": "cublas"})
    found = foresee(case.scenario, case.workload, case.parameters, case.machine)
    result = answered(found.prediction, case, main_seconds(found))
    assert result.answer is not None
    assert result.answer.caveat.startswith(
        "best case, which software in use does not reach; a guess moves tokens/s by -"
    )
