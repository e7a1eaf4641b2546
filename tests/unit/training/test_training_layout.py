"""Runs that cannot be laid out are refused with a sentence; schedules do every task once and in order."""

from __future__ import annotations

from typing import Any

import pytest

from sandtable.contracts import run_command
from sandtable.demand.op import Op
from sandtable.engine.attribution import Interval, attribute
from sandtable.errors import DoesNotFit, PlanError
from sandtable.hardware import library
from sandtable_workloads.training import slm_training
from sandtable_workloads.training.schedule import needed, ordered, tasks_of
from sandtable_workloads.training.training_parameters import SlmTraining

MACHINE = library.load_machine("aws_p4d_24xlarge")
BASE: dict[str, Any] = {"model": "slm_1b", "sequence_tokens": 1024, "micro_batch": 1}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"devices": 4, "tensor_parallel": 4}, "tensor_parallel 4 does not divide the 30 heads"),
        ({"devices": 24, "pipeline_parallel": 24}, "24 are more than the 19 layers"),
        ({"devices": 2, "virtual_stages": 2}, "virtual_stages above 1 need pipeline_parallel above 1"),
        (
            {"devices": 4, "pipeline_parallel": 4, "virtual_stages": 2, "grad_accumulation": 6},
            "grad_accumulation 6 must be a multiple of it",
        ),
        ({"devices": 8, "expert_parallel": 8}, "needs a model with experts"),
        ({"devices": 12}, "no multiple of the 8 accelerators"),
        ({"devices": 3, "context_parallel": 3}, "context_parallel 3 does not divide the 1024 sequence tokens"),
        ({"devices": 2, "sequence_parallel": True}, "set tensor_parallel above 1"),
    ],
)
def test_what_cannot_be_laid_out(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        slm_training.SlmTrainingWorkload().plan(SlmTraining(**BASE | changes), MACHINE, 1)


def test_what_does_not_fit_says_what_breaks() -> None:
    with pytest.raises(DoesNotFit, match=r"would fit|nothing near it fits"):
        slm_training.SlmTrainingWorkload().plan(SlmTraining(**BASE | {"micro_batch": 512}), MACHINE, 1)


def test_the_command_line_ends_with_the_right_code() -> None:
    groups = run_command("simulate", "slm_100m_a100", "--set", "parameters.tensor_parallel=3")
    assert groups.code == 2
    assert "must be a multiple of" in groups.error
    full = run_command("simulate", "slm_100m_a100", "--set", "parameters.micro_batch=4096")
    assert full.code == 5


# --- schedules -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stages", "micros", "chunks"), [(1, 3, 1), (4, 2, 1), (4, 9, 1), (4, 8, 2), (8, 16, 3)])
def test_every_task_once_and_after_what_it_needs(stages: int, micros: int, chunks: int) -> None:
    done = set()
    for task in ordered(stages, micros, chunks):
        wait = needed(task, stages, chunks)
        assert wait is None or wait in done
        assert task not in done
        done.add(task)
    assert len(done) == 2 * stages * micros * chunks


def test_one_forward_one_backward() -> None:
    # arXiv 2104.04473, figure 4: the last stage alternates from the start, the first after filling the pipe
    last = "".join("F" if task.forward else "B" for task in tasks_of(3, 4, 4, 1))
    first = "".join("F" if task.forward else "B" for task in tasks_of(0, 4, 4, 1))
    assert (first, last) == ("FFFFBBBB", "FBFBFBFB")


# --- what an instant counts as -----------------------------------------------------------------------------------


def interval(start: int, end: int, kind: str, section: str, place: int = 0) -> Interval:
    account = "communication" if kind == "all_reduce" else "compute"
    return Interval(start, end, Op(name=kind, operator=kind, account=account, section=section, device=place), 0.0)


def test_hidden_communication_costs_nothing() -> None:
    second = 10**12
    found = attribute(
        [interval(0, 4 * second, "gemm", "backward"), interval(second, 6 * second, "all_reduce", "backward")],
        0,
        7 * second,
    )
    assert found.by_account == {"compute": 4.0, "communication": 2.0}
    assert found.idle_s == 1.0
    assert sum(found.by_section.values()) == 7.0


def test_stages_count_as_their_mean() -> None:
    second = 10**12
    found = attribute(
        [interval(0, 2 * second, "gemm", "forward"), interval(2 * second, 4 * second, "gemm", "forward", 1)],
        0,
        4 * second,
    )
    assert found.by_account == {"compute": 2.0}
    assert found.idle_s == 2.0
