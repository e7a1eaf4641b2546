"""What a pass over checkpoints takes: storage, which reading and writing share, or memory, whichever is longer."""

from __future__ import annotations

import pytest

from sandtable.demand.op import new_files, sequential_write
from sandtable.demand.plan import Phase, Plan, Step
from sandtable.engine.simulation import run
from sandtable.engine.world import Options
from sandtable.hardware import Estimate, Machine, library
from sandtable.model.cost_model import CostModel
from sandtable_workloads.rlhf.soups.soup_demand import soup_ops

N = 6.74e9
READ = 6.05e9  # of the test machine's drive, as fitted


def seconds(machine: Machine, n_models: int = 2, **sizes: float) -> float:
    step = Step(name="soup", ops=soup_ops(N, n_models, **sizes))
    plan = Plan(workload="soup", phases=(Phase(name="soup", steps=(step,)),), main_phase="soup")
    return run(plan, CostModel(machine), Options()).total_s


def with_write_rate(machine: Machine, rate: float | None) -> Machine:
    sheet = machine.storage.datasheet.model_copy(update={"sequential_write_bytes_per_s": rate})
    return machine.model_copy(update={"storage": machine.storage.model_copy(update={"datasheet": sheet})})


def test_two_models_are_three_times_their_bytes_and_three_operations_a_parameter() -> None:
    ops = soup_ops(N, 2)
    storage = [op for op in ops if op.resource == "storage"]
    assert sum(op.bytes_moved for op in storage) == 3 * 2 * N
    assert sum(op.flops for op in ops) == 3 * N


@pytest.mark.parametrize("n_models", [2, 5])
def test_a_drive_of_one_rate_is_read_and_written_at_that_rate(machine: Machine, n_models: int) -> None:
    found = seconds(with_write_rate(machine, None), n_models)
    memory = (n_models + 1) * 2 * N / 10e9
    assert found == pytest.approx(max((n_models + 1) * 2 * N / READ, memory), rel=1e-3)


def test_writing_has_a_rate_of_its_own(machine: Machine) -> None:
    slow = seconds(with_write_rate(machine, READ / 4))
    assert slow == pytest.approx(2 * 2 * N / READ + 4 * 2 * N / READ, rel=1e-3)
    assert slow == pytest.approx(seconds(with_write_rate(machine, None)) * 2, rel=1e-3)


def test_a_soup_in_a_wider_type_writes_twice_as_much(machine: Machine) -> None:
    same, wider = (seconds(with_write_rate(machine, None), out_bytes=n) for n in (2, 4))
    assert wider == pytest.approx(same * 4 / 3, rel=1e-3)


def test_a_data_sheet_without_a_fit_says_how_fast_a_drive_is_written() -> None:
    machine = library.load_machine("aws_i3_2xlarge")
    sheet = machine.storage.datasheet
    assert sheet.sequential_write_bytes_per_s is not None
    write = CostModel(machine).time(sequential_write("w", n_bytes=1e12, chunk_bytes=1 << 20, concurrency=8))
    assert write.seconds == pytest.approx(1e12 / sheet.sequential_write_bytes_per_s, rel=1e-3)
    assert write.low < write.seconds < write.high


def test_a_file_takes_what_was_measured_and_lies_between_the_calls(machine: Machine) -> None:
    measured = Estimate[float](value=5e-3, low=2e-3, high=9e-3)
    assert machine.storage.fitted is not None
    fitted = machine.storage.fitted.model_copy(update={"new_file_s": measured})
    known = machine.model_copy(update={"storage": machine.storage.model_copy(update={"fitted": fitted})})
    found = CostModel(known).time(new_files("f", n_files=3))
    assert found.seconds == pytest.approx(15e-3)
    assert (found.low, found.high) == (pytest.approx(6e-3), pytest.approx(27e-3))


def test_a_file_on_an_unmeasured_drive_lies_between_those_with_capacitors_and_disks(machine: Machine) -> None:
    found = CostModel(machine).time(new_files("f", n_files=1))
    assert (found.low, found.seconds, found.high) == pytest.approx((120e-6, 10e-3, 80e-3))
    stated = Estimate[float](value=40e-3, low=40e-3, high=40e-3)
    sheet = machine.storage.datasheet.model_copy(update={"new_file_s": stated})
    slow = machine.model_copy(update={"storage": machine.storage.model_copy(update={"datasheet": sheet})})
    assert CostModel(slow).time(new_files("f", n_files=1)).seconds == pytest.approx(40e-3)
