"""Rows of Megatron-LM's steps with the memory of each rank: how the column is read, and what is scored."""

from __future__ import annotations

import pytest

from sandtable.published.adapter import Scored, Skipped
from sandtable.published.rows import MalformedRow, Row
from sandtable_workloads.training.published.training_simumax import BY_RANK, PEAK, TrainingSimumax, peaks_by_rank

CELLS = {
    "model": "llama3-70b cut to 12 layers",
    "gpu": "A100-PCIe-80GB",
    "gpu_count": "8",
    "layers": "12",
    "seq_len_tokens": "4096",
    "micro_batch_seqs": "1",
    "grad_accum_steps": "8",
    "tp": "1",
    "pp": "2",
    "sequence_parallel": "on",
    "peak_memory_gb": "66.5",
    "step_s": "",
    "step_time_s": "",
    "peak_memory_gib_per_gpu": "",
    **dict.fromkeys(("cp", "vp", "ep"), "1"),
}
COLUMN = "peak_allocated_mib_by_rank"
FIRST, LAST = 68_106.5, 64_512.25  # MiB: figures of this test's own


def row(**cells: str) -> Row:
    return Row(line=2, cells=CELLS | cells)


def found(one: Row) -> dict[str | None, Scored]:
    outcome = TrainingSimumax().predict(one)
    assert isinstance(outcome, list)
    return {point.metric: point for point in outcome if isinstance(point, Scored)}


@pytest.mark.parametrize("form", ["{}", "rank{}={}", "[{}]", '"{}": {}', "Rank {}: {}"])
@pytest.mark.parametrize("between", [";", ", ", " | "])
def test_peaks_are_read_in_the_order_of_ranks(form: str, between: str) -> None:
    figures = [FIRST + rank for rank in range(8)]
    named = form.count("{}") == 2
    cell = between.join(form.format(*((rank, size) if named else (size,))) for rank, size in enumerate(figures))
    assert peaks_by_rank(row(**{COLUMN: cell})) == [size * 2**20 for size in figures]


def test_the_rank_furthest_off_is_scored_by_its_own_stage() -> None:
    peaks = [FIRST] * 4 + [LAST] * 3 + [LAST / 2]
    by_rank = found(row(**{COLUMN: ";".join(str(size) for size in peaks)}))
    assert by_rank[BY_RANK].measured == LAST / 2 * 2**20
    assert by_rank[BY_RANK].predicted < by_rank[PEAK].predicted
    turned = found(row(**{COLUMN: ";".join(str(size) for size in peaks[::-1])}))
    assert turned[BY_RANK].predicted == by_rank[PEAK].predicted


def test_rows_without_the_column_have_their_peak_alone() -> None:
    for one in (row(), row(**{COLUMN: ""})):
        assert set(found(one)) == {PEAK}


def test_as_many_peaks_as_devices() -> None:
    with pytest.raises(MalformedRow, match="2 peaks by rank for 8 devices"):
        TrainingSimumax().predict(row(**{COLUMN: "68106.5;64512.25"}))


def test_a_machine_that_is_unknown_is_said() -> None:
    assert TrainingSimumax().predict(row(gpu="GTX 480")) == Skipped("no machine with this accelerator")
