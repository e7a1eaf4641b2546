"""A calibration says in a few lines how fast a machine is, and how well that is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sandtable.calibration.calibrated import Calibrated
from sandtable.calibration.calibration_card import calibration_answer
from sandtable.hardware import Machine, library


def test_a_calibration_answers_how_fast_and_how_well_known(machine: Machine) -> None:
    answer = calibration_answer(machine, [0.01, -0.03, 0.02, 0.2], ["the load was 9"], host=True)
    assert answer.subject.startswith(machine.title)
    assert answer.verdict.startswith("Known: 4 points fitted within 2.5 % in the median, 15 % for nine of ten")
    storage = machine.storage.fitted
    assert storage is not None
    fastest = max(storage.bandwidth_bytes_per_s.value, storage.sequential_bytes_per_s.value)
    assert f"storage reads up to {fastest / 1e9:.3g} GB/s" in answer.headlines[0]
    assert answer.headlines[1].startswith("memory moves up to")
    assert " FLOP/s" in answer.headlines[2].replace("G", " ").replace("T", " ")
    assert answer.caveat == "the load was 9"
    assert len(answer.lines()) <= 8


def test_of_gpus_alone_only_they_are_told() -> None:
    found = Calibrated(machine=library.load_machine("dgx_a100_80gb"), host=False)
    (told,) = found.answer.headlines
    assert told.startswith("8 × NVIDIA A100")
    assert str(found) == str(found.answer)
    with pytest.raises(AttributeError):
        found.answer = None  # type: ignore[misc, assignment]
    assert replace(found, warnings=["throttled"]).answer.caveat == "throttled"
