"""The answer that a prediction or a measurement gives: verdict, headline, money, memory, what bounds it, one caveat."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TypeVar

from sandtable import units
from sandtable.demand.operator import operator_named
from sandtable.errors import DoesNotFit
from sandtable.hardware import Machine
from sandtable.results import Answer, Metric, Result
from sandtable.runs import compare
from sandtable.runs.answers.caveats import Seconds, caveat_of
from sandtable.workload.scenarios import Case
from sandtable.workload.seam import Scenario, Verdict

AnyResult = TypeVar("AnyResult", bound=Result)

# a title that begins like this asks whether something runs, which a result of it answers
YES_OR_NO = re.compile(r"^(Does|Do|Can|Will) .*\?")
# resources by the names that people who pay use
RESOURCES = {"io": "storage", "memory": "copying"}
UNITS = {"USD/Mtok": "USD per million tokens"}
FIGURES = 3
MOST_HEADLINES = 3
MONEY = "USD"
# a share of the time that is too small to be named
LEAST_FRAC = 0.005


def answered(result: AnyResult, case: Case, seconds: Seconds | None = None) -> AnyResult:
    """Return a result of a case with the answer that it gives to the question of the case's scenario.

    ``seconds`` are those of a prediction's unit of work by the source of their error; see `caveats.main_seconds`.
    """
    answer = Answer(
        question=case.scenario.title,
        subject=subject_of(case),
        verdict=_verdict(case.scenario, result),
        headlines=_headlines(result, case),
        bound=case.workload.bound(case.parameters, result.metrics) or bound_text(result, seconds or {}),
        caveat=caveat_of(result, case, seconds or {}),
    )
    return result.model_copy(update={"answer": answer})


@contextlib.contextmanager
def answering(case: Case) -> Iterator[None]:
    """Give the answer "no" to whatever does not fit while inside.

    Raises:
        DoesNotFit: passed on, with its `answer`.
    """
    try:
        yield
    except DoesNotFit as error:
        error.answer = refusal(case, str(error))
        raise


def refusal(case: Case, reason: str) -> Answer:
    """Return the answer that a case does not fit: what it needs of what there is, what breaks it, what would fit."""
    judged = next(iter(case.workload.verdicts([case.parameters], case.machine)), None)
    fitting = case.workload.what_fits(case.parameters, case.machine)
    breaks, advice = reason, ""
    if judged is not None and not judged.fits:
        needed, there = units.format_bytes(judged.needed_bytes), units.format_bytes(judged.has_bytes)
        kept = (
            f", {units.format_bytes(judged.reserve_bytes)} are kept for the system" if judged.reserve_bytes else ""
        )
        breaks = f"it needs {needed} and there are {there}{kept}; {judged.breaks} pass the limit"
        advice = "nothing near it fits: take a device with more memory"
    if fitting:
        advice = f"this would fit: {'; '.join(fitting)}"
    return Answer(
        question=case.scenario.title,
        subject=subject_of(case),
        verdict=f"No: {breaks}.",
        headlines=(advice,) if advice else (),
    )


def subject_of(case: Case) -> str:
    """Return what was asked of what: the workload's subject, the machine and its software by their titles."""
    machine = case.machine
    software = "kernels timed on it" if machine.stack is None else machine.stack.title
    return f"{case.workload.subject(case.parameters, machine)}; {machine.title}; {software}"


def _verdict(scenario: Scenario, result: Result) -> str:
    known = {metric: text for metric, text in scenario.thresholds.items() if metric in result.metrics}
    missed = [
        f"{sentence} does not hold, it is {units.format_quantity(value, result.metrics[sentence.split()[0]].unit)}"
        for sentence, held, value in compare.check_thresholds(known, result)
        if not held
    ]
    if missed:
        return f"No: {'; '.join(missed)}."
    return "Yes." if YES_OR_NO.match(scenario.title) else ""


def _headlines(result: Result, case: Case) -> tuple[str, ...]:
    """Return the headline metrics with their intervals, and the memory behind the first of them."""
    known = {name: result.metrics[name] for name in case.workload.headlines if name in result.metrics}
    texts = [amount_text(name, metric) for name, metric in known.items()][:MOST_HEADLINES]
    # dollars of a price that somebody made up are no better than that
    guessed = ", price guessed" if "price.hour" in case.machine.guesses() else ""
    texts = [f"{text}{guessed}" if MONEY in text else text for text in texts]
    # the first interval says what share it covers
    texts[:1] = [text.replace("(", "(90 %: ", 1) for text in texts[:1]]
    return (*texts[:1], memory_text(result, case), *texts[1:])


def amount_text(name: str, metric: Metric) -> str:
    """Return a metric in words: ``step 1.24 s (1.1 to 1.42)``; a rate or a price needs no name beside its unit."""
    label = "" if "/" in metric.unit else f"{units.strip_suffix(name.partition('.')[0]).replace('_', ' ')} "
    (number, unit), *ends = (number_and_unit(end, metric.unit) for end in (metric.value, metric.low, metric.high))
    if metric.low == metric.high:
        return f"{label}{number} {unit}"
    # the unit stands once, where all three have the same
    alike = all(of_end == unit for _, of_end in ends)
    low, high = (end if alike else f"{end} {of_end}" for end, of_end in ends)
    return f"{label}{number} {unit} ({low} to {high})"


def number_and_unit(value: float, unit: str) -> tuple[str, str]:
    """Return number and unit of a quantity, with three figures."""
    text = units.format_quantity(float(f"{value:.{FIGURES}g}"), unit)
    number = re.match(r"[-\d., ]*\d(?:e[-+]?\d+)?", text)
    assert number is not None
    shown = text[number.end() :].strip()
    return number[0], UNITS.get(shown, shown)


def worded(text: str) -> str:
    """Return a sentence with units as people who pay say them."""
    for unit, words in UNITS.items():
        text = text.replace(unit, words)
    return text


def memory_text(result: Result, case: Case) -> str:
    """Return the memory needed of what there is, and what of it is kept for the system."""
    judged = next(iter(case.workload.verdicts([case.parameters], case.machine)), None) or _judged(case.machine)
    needed = sum(result.memory.values()) or result.metrics["peak_memory_bytes"].value
    sizes = [units.format_bytes(size) for size in (needed, judged.has_bytes)]
    same = sizes[0].split()[1] == sizes[1].split()[1]
    kept = f", {units.format_bytes(judged.reserve_bytes)} kept for the system" if judged.reserve_bytes else ""
    return f"memory {sizes[0].split()[0] if same else sizes[0]} of {sizes[1]}{kept}"


def _judged(machine: Machine) -> Verdict:
    """Return the memory of a machine, of which nothing is taken, for a workload that does not judge itself."""
    memory = machine.memory if machine.accelerator is None else machine.accelerator.memory
    return Verdict(needed_bytes=0.0, has_bytes=memory.datasheet.capacity_bytes, largest="", breaks=None)


def resource_name(account: str) -> str:
    """Return what people call that which an account of time is about."""
    return RESOURCES.get(account, account)


def bound_text(result: Result, seconds: Seconds) -> str:
    """Return what the time goes to, the largest first: ``Bound by storage, 54 % of the time (compute 35 %)``.

    Computing that waits for its operands more than half of the time is called by what it waits for; other computing
    names the operators that take most of it.
    """
    total = sum(result.breakdown.values())
    parts = sorted(result.breakdown.items(), key=lambda item: -item[1])
    shares = [
        f"{resource_name(name)} {100 * part / total:.0f} %" for name, part in parts if part > total * LEAST_FRAC
    ]
    if not shares:
        return ""
    others = f" ({', '.join(shares[1:])})" if shares[1:] else ""
    name, share = shares[0].split(" ", 1)
    computed = {source: part for source, part in seconds.items() if source.resource == "compute"}
    most = ""
    if parts[0][0] == "compute" and _is_held_up(computed):
        name = "memory bandwidth"
    elif parts[0][0] == "compute" and computed:
        most = _most_of(computed, parts[0][1] / total)
    return f"Bound by {name}, {share} of the time{most}{others}."


def _is_held_up(computed: Seconds) -> bool:
    """Whether memory's bandwidth, not arithmetic, holds up most of what processors do."""
    return 2 * sum(part for source, part in computed.items() if source.by_bandwidth) > sum(computed.values())


def _most_of(computed: Seconds, compute_frac: float) -> str:
    """Return which operators take most of the computing, and their share of all time: ``, 61 % in butterflies``."""
    taken: dict[str, float] = {}
    for source, part in computed.items():
        called = operator_named(source.kind.split()[0]).called
        taken[called] = taken.get(called, 0.0) + part
    most = max(taken, key=lambda called: taken[called])
    return f", {100 * compute_frac * taken[most] / sum(taken.values()):.0f} % in {most}"
