"""What ranks leave on disk: every damage is noticed, and only whole checkpoints are gone on from."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from sandtable.errors import ConfigError
from sandtable_workloads.training.executed import job as files
from sandtable_workloads.training.executed.job import Record
from sandtable_workloads.training.executed.tokens import prepare_tokens

N = 12


def a_record(step: int) -> Record:
    loss = 5.5 - step / 30
    return Record(
        step=step, total_s=0.1, forward_s=0.03, backward_s=0.05, communication_s=0.0, optimizer_s=0.01, loss=loss
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A job's folder with twelve steps and checkpoints after four and eight of them."""
    for step in range(N):
        files.append_record(tmp_path, 0, a_record(step))
    for n_done in (4, 8):
        part = files.part_path(tmp_path, n_done, 0)
        part.parent.mkdir()
        part.write_bytes(np.random.default_rng(n_done).bytes(500))
        files.seal_part(part)
    return tmp_path


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def test_whole_files_come_back(folder: Path) -> None:
    assert files.all_records(folder, 0, N) == [a_record(step) for step in range(N)]
    assert files.drop_unusable(folder, 1) == []
    assert files.checkpoints(folder) == [8, 4]


def test_no_flipped_bit_and_no_cut_of_the_records_passes(folder: Path) -> None:
    path, rng = files.records_path(folder, 0), random.Random(0)
    whole = path.read_bytes()
    for index in range(400):
        path.write_bytes(flipped(whole, rng) if index % 2 else whole[: rng.randrange(len(whole))])
        found = files.read_records(folder, 0)
        assert found == [a_record(step) for step in range(len(found))]
        with pytest.raises(ConfigError, match=r"rank0.jsonl: step \d+ of 12 is damaged or missing"):
            files.all_records(folder, 0, N)


@pytest.mark.parametrize("steps", [[0, 1, 1, 2], [0, 2, 1, 3], [0, 1, 3, 4], [0, 1, 2, 3, 4]])
def test_number_and_order_of_steps_are_checked(tmp_path: Path, steps: list[int]) -> None:
    for step in steps:
        files.append_record(tmp_path, 0, a_record(step))
    with pytest.raises(ConfigError, match="step"):
        files.all_records(tmp_path, 0, 4)


@pytest.mark.parametrize("name", ["rank0.pt", "rank0.digest"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(folder: Path, name: str) -> None:
    path = folder / "checkpoint-8" / name
    path.write_bytes(flipped(path.read_bytes(), random.Random(1)))
    damaged, again = files.drop_unusable(folder, 1)
    assert "the checkpoint of step 8 is not gone on from" in damaged
    assert "rank0.pt: is damaged" in damaged
    assert again == "trained again from step 4 on"
    assert files.checkpoints(folder) == [4]


def test_a_checkpoint_whose_steps_are_not_all_recorded_is_not_gone_on_from(folder: Path) -> None:
    files.keep_records(folder, 0, 6)
    assert "step 6 is damaged or missing" in files.drop_unusable(folder, 1)[0]
    assert files.checkpoints(folder) == [4]


def test_without_a_whole_checkpoint_it_begins_anew(folder: Path) -> None:
    for n_done in (4, 8):
        files.part_path(folder, n_done, 0).unlink()
    (folder / "checkpoint-9.tmp").mkdir()
    assert files.drop_unusable(folder, 1)[-1] == "trained again from step 0 on"
    assert [path.name for path in folder.iterdir()] == ["rank0.jsonl"]


def test_a_damaged_result_is_refused(folder: Path) -> None:
    files.save_result(folder, 0, {"weights_bytes": 1.0})
    path, rng = files.result_path(folder, 0), random.Random(2)
    whole = path.read_bytes()
    assert files.read_result(folder, 0) == {"weights_bytes": 1.0}
    for _ in range(200):
        path.write_bytes(flipped(whole, rng))
        with pytest.raises(ConfigError, match=r"rank0.json"):
            files.read_result(folder, 0)


@pytest.mark.parametrize("suffix", [".bin", ".json"])
def test_damaged_tokens_are_written_anew(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "text").write_text("to be or not to be " * 100)

    def prepared() -> np.ndarray:
        found = prepare_tokens(tmp_path, text=str(tmp_path / "text"), tokenizer="byte", vocabulary=256)
        return np.concatenate([found.split("train"), found.split("validation")])

    right, rng = prepared(), random.Random(3)
    (path,) = tmp_path.glob(f"tokens-*{suffix}")
    whole = path.read_bytes()
    for index in range(100):
        path.write_bytes(flipped(whole, rng) if index % 2 else whole[: rng.randrange(len(whole))])
        np.testing.assert_array_equal(prepared(), right)
        assert path.read_bytes() == whole
