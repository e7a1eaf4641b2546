"""The one caveat that an answer depends on most, and by how much.

What the reader must do or have for the answer to hold comes first: a workload says it. Then software that stands for
the best case, which none in use reaches. Then the guess that carries the result: a number without a source is as
uncertain as the law that reads it, and moves the headline by that law's miss times its share of the time. Then devices
of which only the data sheet is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sandtable.demand.operator import operator_named
from sandtable.hardware import Machine
from sandtable.model.error_sources import Miss, Source
from sandtable.results import Result
from sandtable.runs.predict import Foreseen
from sandtable.workload.scenarios import Case

# numbers of a data sheet that no time follows from
NO_TIME = ("tdp", "idle", "price", "power", "capacity", "residual_low", "residual_high", "reserved", "fragmented")
# resources that software has a say in
SOFTWARE = ("compute", "memory", "network")
LEAST_EFFECT = 0.01
Seconds = Mapping[Source, float]


class Guess(NamedTuple):
    """A guessed number, or several of one law, with the logarithms by which the time may be less, and more."""

    name: str
    miss: Miss


def caveat_of(result: Result, case: Case, seconds: Seconds) -> str:
    """Return the caveat that matters most, empty if there is none.

    Args:
        result: What is answered; a measurement has no guesses.
        case: What was asked.
        seconds: Of a prediction, the time of a unit of work by the source of its error; see `main_seconds`.
    """
    stack, machine, best = case.machine.stack, case.machine, ""
    said = [*case.workload.caveats(case.parameters, machine)]
    if result.kind == "measurement":
        # what makes a measurement less valid matters more than what a prediction would assume
        return next(iter((*result.warnings, *said)), "")
    if stack is not None and stack.best_case and any(source.resource in SOFTWARE for source in seconds):
        best = "best case, which software in use does not reach"
    guesses = getattr(result, "guesses", ())
    guess = largest(guesses, machine, seconds)
    moved = "" if guess is None else _in_words(guess, len(guesses), case, result)
    if best or moved:
        said.append("; ".join(text for text in (best, moved) if text))
    return next(iter((*said, *result.warnings)), "")


def main_seconds(found: Foreseen) -> dict[Source, float]:
    """Return the seconds of the main unit of work by the source of their error; of all units, where they overlap."""
    process, seconds = found.process, dict[Source, float]()
    for (unit, _, _), sources in found.run.sources.items():
        if unit == process.main_unit or not process.phases:
            for source, part in sources.items():
                seconds[source] = seconds.get(source, 0.0) + part
    return seconds


def largest(guesses: Sequence[str], machine: Machine, seconds: Seconds) -> Guess | None:
    """Return the guess that moves the time most; None if none moves it by a percent."""
    total = sum(seconds.values())
    names = dict.fromkeys(_grouped(text) for text in guesses)
    found = [Guess(name, _miss(name, machine, seconds, total)) for name in names] if total > 0 else []
    software = "" if machine.stack is None else machine.stack.name
    # where software reaches a share of a data sheet, the share is what is known least
    most = max(found, key=lambda guess: (sum(guess.miss), guess.name.startswith(f"{software}: ")), default=None)
    return most if most is not None and sum(most.miss) >= LEAST_EFFECT else None


def _grouped(text: str) -> str:
    """Return the name of a guess, or of all guesses about one operator together."""
    part, _, path = text.partition(": ")
    words = path.split(".")
    return f"{part}: {'.'.join(words[: 3 if 'efficiency' in words else 2])}"


def _miss(name: str, machine: Machine, seconds: Seconds, total: float) -> Miss:
    """Return by how much the time moves with a guess: the misses of the laws that read it, by their shares."""
    read = [(source, part) for source, part in seconds.items() if _reads(name, source, machine)]

    def moved(end: int) -> float:
        return sum(part / total * math.hypot(source.own[end], source.common[end]) for source, part in read)

    return Miss(moved(0), moved(1))


def _reads(name: str, source: Source, machine: Machine) -> bool:
    """Whether the time of a source follows a guessed number."""
    part, _, path = name.partition(": ")
    words, operator = path.split("."), source.kind.partition(" ")[0]
    if words[-1] in NO_TIME or words[0] in NO_TIME:
        return False
    if machine.stack is not None and part == machine.stack.name:
        return source.law == "data sheet" and words[-1] == _efficiency_of(operator, source.kind, machine)
    if words[0] == "laws":
        known = source.law.rpartition(" ")[2] == words[1] == operator_named(operator).fitted_as
        return known and part in _families_of(source, machine)
    if part == machine.storage.name:
        return source.resource == "storage"
    # of a processor's data sheet, that law reads the arithmetic rate alone
    by_rate = source.law == "data sheet" and source.resource == "compute" and words[1:2] == ["peak"]
    return by_rate and not source.by_bandwidth and part in _names_of(source.on, machine)


def _efficiency_of(operator: str, kind: str, machine: Machine) -> str:
    assert machine.stack is not None
    table = machine.stack.datasheet.efficiency
    return next((key for key in (kind.replace(" ", "."), operator) if key in table), "default")


def _names_of(on: str, machine: Machine) -> set[str]:
    """Return what the processor is called that ops of one place compute on: by itself, and by its card."""
    if on == "host" or machine.accelerator is None:
        return {machine.processor.name}
    return {machine.accelerator.processor.name, machine.accelerator.device.name}


def _families_of(source: Source, machine: Machine) -> set[str]:
    """Return the families whose files say what the law of a source takes as given."""
    if source.resource == "network":
        return {link.family for link in (machine.group_link, machine.network) if link is not None}
    if source.on == "host" or machine.accelerator is None:
        return {machine.processor.family}
    return {machine.accelerator.processor.family}


def _in_words(guess: Guess, n: int, case: Case, result: Result) -> str:
    name = next((name for name in case.workload.headlines if name in result.metrics), "latency_s.mean")
    metric = result.metrics.get(name)
    what, faster = (
        ("the time", False) if metric is None or metric.unit == "s" else (metric.unit, "/s" in metric.unit)
    )
    below, above = (guess.miss.above, guess.miss.below) if faster else guess.miss
    part, _, path = guess.name.partition(": ")
    among = f", the largest of {n}" if n > 1 else ""
    ends = f"-{100 * (1 - math.exp(-below)):.0f} to +{100 * (math.exp(above) - 1):.0f} %"
    return f"a guess moves {what} by {ends}: {path.removeprefix('datasheet.')} of {part}{among}"
