"""Lengths are drawn with the mean that is asked for, and a continuous batch of them does every token once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable_workloads.rlhf.answer_lengths import (
    Drawn,
    decode_steps,
    drawn,
    engines_of,
    most_cached,
    prompt_passes,
    slowest_engine,
)
from sandtable_workloads.rlhf.rlhf_parameters import Rlhf

LENGTHS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=30)


@pytest.mark.parametrize("lengths", ["lognormal", "geometric"])
def test_lengths_have_the_mean_asked_for_and_never_more_than_the_most(lengths: str) -> None:
    p = Rlhf(rollout_batch=500, prompt_mean_tokens=150, answer_mean_tokens=600, lengths=lengths)  # type: ignore[arg-type]
    found = drawn(p, 3)
    assert found.prompts.mean() == pytest.approx(150, rel=0.01)
    assert found.answers.mean() == pytest.approx(600, rel=0.01)
    assert 1 <= found.answers.min() < found.answers.max() == 1024
    assert np.array_equal(found.answers, drawn(p, 3).answers)
    assert not np.array_equal(found.answers, drawn(p, 4).answers)


def test_without_a_mean_all_have_the_most() -> None:
    found = drawn(Rlhf(rollout_batch=128, prompt_tokens=100, answer_tokens=50), 1)
    assert set(found.prompts) == {100}
    assert set(found.answers) == {50}
    assert found.padded(8) == found.mean == 150


def test_a_sequence_is_padded_to_the_longest_of_its_micro_batch() -> None:
    found = Drawn(prompts=np.array([1, 2, 3]), answers=np.array([10, 5, 7]))
    # two of 2 + 10, then one of 3 + 7 alone
    assert found.padded(2) == pytest.approx((12 + 12 + 10) / 3)
    assert found.padded(1) == pytest.approx(found.mean)


def one_by_one(pairs: list[tuple[int, int]], slots: int) -> dict[int, tuple[int, int]]:
    """Decode token by token, as an engine does: steps and tokens looked back on, by rows."""
    waiting, running, found = list(pairs), list[list[int]](), dict[int, tuple[int, int]]()
    while waiting or running:
        while waiting and len(running) < slots:
            prompt, answer = waiting.pop(0)
            if answer > 1:
                running.append([prompt, answer - 1])
        if not running:
            break
        for row in running:
            row[0] += 1
            row[1] -= 1
        steps, seen = found.get(len(running), (0, 0))
        found[len(running)] = (steps + 1, seen + sum(row[0] for row in running))
        running = [row for row in running if row[1]]
    return found


@given(pairs=LENGTHS, slots=st.integers(1, 8))
def test_steps_that_are_put_together_are_those_of_an_engine(pairs: list[tuple[int, int]], slots: int) -> None:
    lengths = Drawn(prompts=np.array([p for p, _ in pairs]), answers=np.array([a for _, a in pairs]))
    found: dict[float, tuple[float, float]] = {}
    for n, rows, context in decode_steps(lengths, [np.arange(len(pairs))], slots):
        steps, seen = found.get(rows, (0.0, 0.0))
        found[rows] = (steps + n, seen + n * rows * context)
    wanted = one_by_one(pairs, slots)
    assert found.keys() == wanted.keys()
    for rows, (steps, seen) in wanted.items():
        assert found[rows] == pytest.approx((steps, seen))


def test_the_batch_shrinks_as_answers_end() -> None:
    lengths = Drawn(prompts=np.array([10, 10, 10]), answers=np.array([2, 3, 5]))
    found = [(n, rows) for n, rows, _ in decode_steps(lengths, [np.arange(3)], 8)]
    assert found == [(1, 3), (1, 2), (2, 1)]


def test_padded_prompts_begin_and_end_together() -> None:
    lengths = Drawn(prompts=np.array([10, 4, 7]), answers=np.array([2, 3, 5]))
    static = decode_steps(lengths, [np.arange(3)], 8, batching="static")
    # four steps after the prompts' pass, each of three rows that look back on 11, 12, 13 and 14 columns
    assert static == [(4, 3.0, pytest.approx(12.5))]
    shrinking = decode_steps(lengths, [np.arange(3)], 8, batching="shrinking")
    assert shrinking == [(1, 3.0, 11.0), (1, 2.0, 12.0), (2, 1.0, pytest.approx(13.5))]


def test_rows_within_a_factor_are_put_together_as_their_mean() -> None:
    p = Rlhf(rollout_batch=200, answer_mean_tokens=300, train_batch=100)
    lengths = drawn(p, 1)
    rounds = slowest_engine(p, lengths)
    fine, coarse = (decode_steps(lengths, rounds, 64, rows_factor=factor) for factor in (1.0, 1.3))
    assert len(coarse) < len(fine) / 2
    for column in (lambda s: s[0], lambda s: s[0] * s[1], lambda s: s[0] * s[1] * s[2]):
        assert sum(map(column, coarse)) == pytest.approx(sum(map(column, fine)))


def test_a_static_batch_fills_the_cache_with_padding() -> None:
    p = Rlhf(
        rollout_batch=4, train_batch=4, generation_batch=2, batching="static", prompt_tokens=9, answer_tokens=5
    )
    lengths = Drawn(prompts=np.array([9, 1, 2, 3]), answers=np.array([1, 1, 5, 1]))
    rounds = slowest_engine(p, lengths)
    assert [len(places) for places in rounds] == [2, 2]
    assert most_cached(p, lengths) == 2 * (9 + 5)
    assert prompt_passes(p, lengths, rounds) == (2, 2.0, (9 + 3) / 2)


def test_sequences_padded_at_their_end_are_shorter() -> None:
    found = Drawn(prompts=np.array([1, 9]), answers=np.array([9, 1]))
    assert found.padded(2) == 18
    assert found.padded(2, both=False) == 10


def test_the_engine_that_ends_last_is_taken() -> None:
    p = Rlhf(rollout_batch=4, train_batch=4, devices=2, answer_tokens=9)
    lengths = Drawn(prompts=np.full(4, 5), answers=np.array([1, 9, 1, 2]))
    assert [list(places) for places in slowest_engine(p, lengths)] == [[1, 3]]
    assert most_cached(p, lengths) == 5 + 9 + 5 + 2


def test_ranks_that_wait_for_their_own_rollouts_leave_engines_idle() -> None:
    shared = {
        "devices": 6,
        "placement": "separate",
        "generation_devices": 4,
        "rollout_batch": 64,
        "train_batch": 64,
    }
    assert engines_of(Rlhf.model_validate(shared)) == 4
    assert engines_of(Rlhf.model_validate(shared | {"rollout_micro_batch": 8})) == 2
    rounds = slowest_engine(
        Rlhf.model_validate(shared | {"rollout_micro_batch": 8}), Drawn(np.full(64, 1), np.full(64, 3))
    )
    assert [len(places) for places in rounds] == [8, 8, 8, 8]
