from __future__ import annotations

import ctypes
import importlib.util
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandtable.errors import ConfigError, DoesNotFit
from sandtable_kernels.neurons.neuron_cache import NeuronCache, WindowIndex

needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="moving rows needs numba")
N = 24


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def sets_of_neurons() -> st.SearchStrategy[list[list[int]]]:
    return st.lists(st.lists(st.integers(0, N - 1), unique=True, max_size=9).map(sorted), max_size=25)


def check_consistent(index: WindowIndex) -> None:
    """Rows form a prefix, and `row_of` and `pointer` are each other's inverse."""
    present = index.present()
    assert len(present) == index.n_used <= index.capacity_rows
    assert len(np.unique(present)) == len(present)
    assert np.array_equal(index.row_of[present], np.arange(index.n_used))
    assert np.count_nonzero(index.row_of >= 0) == index.n_used


def test_a_window_of_two_tokens_step_by_step():
    index = WindowIndex(8, 6, window=2)
    first = index.update(ids(1, 3, 5), 0)
    assert first.missing.tolist() == [1, 3, 5]
    assert first.rows.tolist() == [0, 1, 2]
    second = index.update(ids(3, 6), 1)
    assert (second.missing.tolist(), second.n_hits, second.n_evicted) == ([6], 1, 0)
    # 1 and 5 were last used two tokens ago: the last row (6) fills row 0, and 2 becomes row 2
    third = index.update(ids(2, 3), 2)
    assert (third.moves_src.tolist(), third.moves_dst.tolist()) == ([3], [0])
    assert (third.n_evicted, third.rows.tolist(), third.n_used) == (2, [2], 3)
    assert index.present().tolist() == [6, 3, 2]


def test_window_zero_loads_everything_each_time():
    index = WindowIndex(10, 4, window=0)
    for token in range(3):
        delta = index.update(ids(1, 2, 7), token)
        assert delta.missing.tolist() == [1, 2, 7]
        assert (delta.n_hits, delta.n_used, len(delta.moves_src)) == (0, 3, 0)
        check_consistent(index)


def test_the_window_shrinks_to_the_least_recently_used():
    index = WindowIndex(10, 4, window=9)
    index.update(ids(0, 1), 0)
    index.update(ids(2, 3), 1)
    delta = index.update(ids(1, 4), 2)  # 0 is the oldest that is not active
    assert (delta.n_evicted, delta.n_forced, delta.missing.tolist()) == (1, 1, [4])
    assert sorted(index.present().tolist()) == [1, 2, 3, 4]


def test_too_many_active_neurons_do_not_fit_and_change_nothing():
    index = WindowIndex(10, 3, window=2, layer=7)
    index.update(ids(1, 2), 0)
    with pytest.raises(DoesNotFit, match=r"layer 7 needs 4 rows .* budget of 3 rows"):
        index.update(ids(1, 2, 3, 4), 1)
    assert index.present().tolist() == [1, 2]
    assert index.update(ids(1, 2), 1).n_hits == 2


@pytest.mark.parametrize("active", [(2, 1), (1, 1), (-1, 2), (3, 10)])
def test_ids_that_are_not_ascending_neurons_are_refused(active):
    with pytest.raises(ConfigError, match="ascending ids from 0 to 9"):
        WindowIndex(10, 5, window=1).update(ids(*active), 0)


def test_a_cache_of_no_neurons_is_refused():
    with pytest.raises(ConfigError, match="0 neurons"):
        WindowIndex(0, 5, window=1)


def test_clear_forgets_everything():
    index = WindowIndex(10, 5, window=3)
    index.update(ids(1, 2), 0)
    index.clear()
    check_consistent(index)
    assert index.update(ids(1, 2), 1).missing.tolist() == [1, 2]


@given(sets_of_neurons(), st.integers(0, 5))
def test_with_room_the_cache_holds_exactly_the_window(sets, window):
    index = WindowIndex(N, N, window)
    for token, active in enumerate(sets):
        delta = index.update(ids(*active), token)
        check_consistent(index)
        recent = sets[max(0, token - max(window, 1) + 1) : token + 1]
        assert set(index.present().tolist()) == set().union(*recent)
        before = sets[max(0, token - window) : token]
        assert set(delta.missing.tolist()) == set(active) - set().union(*before)
        assert delta.n_hits + len(delta.missing) == len(active)
        assert delta.n_forced == 0


@given(sets_of_neurons(), st.integers(1, 5), st.integers(9, 14))
def test_without_room_the_oldest_go(sets, window, capacity):
    index = WindowIndex(N, capacity, window)
    last_used: dict[int, int] = {}
    for token, active in enumerate(sets):
        before = set(index.present().tolist())
        delta = index.update(ids(*active), token)
        check_consistent(index)
        last_used |= dict.fromkeys(active, token)
        after = set(index.present().tolist())
        gone, kept = before - after, (before & after) - set(active)
        assert set(active) <= after
        assert all(last_used[neuron] > token - window for neuron in after)
        expired = {neuron for neuron in before if last_used[neuron] <= token - window}
        assert delta.n_evicted == len(gone)
        assert delta.n_forced == len(gone - expired)
        if delta.n_forced:
            assert len(after) == capacity
            assert max(last_used[neuron] for neuron in gone) <= min((last_used[k] for k in kept), default=token)


@needs_numba
@settings(deadline=None)
@given(sets_of_neurons(), st.integers(0, 4), st.integers(9, N), st.sampled_from(["float32", "bfloat16"]))
def test_records_follow_their_neurons(sets, window, capacity, dtype):
    index = WindowIndex(N, capacity, window)
    cache = NeuronCache(index, d_model=8, dtype=dtype)
    where = cache.matrix.ctypes.data
    biases = np.arange(N, dtype=np.float32) / 4
    contents: dict[int, int] = {}
    for token, active in enumerate(sets):
        delta = index.update(ids(*active), token)
        assert set(delta.moves_src.tolist()).isdisjoint(delta.moves_dst.tolist())
        cache.apply_moves(delta, n_threads=1)
        staging = np.repeat(delta.missing[:, None], 16, axis=1).astype(cache.matrix.dtype)
        cache.insert_copy(delta.rows, staging, n_threads=1)
        cache.set_bias(delta, biases)
        contents = {neuron: neuron for neuron in index.present().tolist()}
        assert set(active) <= set(contents)
        assert np.array_equal(cache.used_matrix(), np.repeat(index.present()[:, None], 16, axis=1))
        assert np.array_equal(cache.used_bias(), biases[index.present()])
        assert np.array_equal(index.rows_of(index.present()), np.arange(len(contents)))
    assert cache.matrix.ctypes.data == where


@needs_numba
def test_nothing_is_reallocated():
    index = WindowIndex(4096, 2048, window=3)
    cache = NeuronCache(index, d_model=256)
    where, rng = cache.matrix.ctypes.data, np.random.default_rng(0)
    staging = np.zeros((1024, 512), np.float32)
    peaks = []
    for token in range(8):
        active = np.sort(rng.permutation(4096)[:900])
        tracemalloc.start()
        delta = index.update(active, token)
        cache.apply_moves(delta)
        cache.insert_copy(delta.rows, staging)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert cache.matrix.ctypes.data == where
    # the first tokens compile; afterwards index arrays of a few kilobytes, against a matrix of 4 MiB
    assert max(peaks[-3:]) < cache.matrix.nbytes / 20


def test_row_addresses_point_at_rows_and_vectors():
    cache = NeuronCache(WindowIndex(10, 5, 1), d_model=4, n_vectors=3, dtype="bfloat16", row_bytes=32)
    assert cache.matrix.shape == (5, 16)
    cache.matrix[:] = np.arange(80).reshape(5, 16)
    for vector in (None, 0, 2):
        for row, place in zip((3, 1), cache.row_addresses(ids(3, 1), vector), strict=True):
            assert ctypes.c_uint16.from_address(int(place)).value == 16 * row + 4 * (vector or 0)
    assert cache.row_addresses(ids(0))[0] % 4096 == 0
    assert cache.nbytes == 5 * 32 + 5 * 4


@needs_numba
def test_one_vector_of_a_record_can_be_inserted():
    cache = NeuronCache(WindowIndex(10, 4, 1), d_model=2)
    cache.insert_copy(ids(2, 0), np.array([[1, 2], [3, 4]], np.float32), vector=1)
    assert cache.matrix.tolist() == [[0, 0, 3, 4], [0, 0, 0, 0], [0, 0, 1, 2], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    "staging", [np.zeros((2, 5), np.float32), np.zeros((1, 4), np.float32), np.zeros((2, 4), np.uint16)]
)
def test_a_staging_buffer_of_another_form_is_refused(staging):
    with pytest.raises(ConfigError, match="cannot fill 2 rows of 4 elements"):
        NeuronCache(WindowIndex(10, 4, 1), d_model=2).insert_copy(ids(0, 1), staging)


def test_rows_shorter_than_records_are_refused():
    with pytest.raises(ConfigError, match="cannot hold records of 16 bytes"):
        NeuronCache(WindowIndex(10, 4, 1), d_model=2, row_bytes=8)
