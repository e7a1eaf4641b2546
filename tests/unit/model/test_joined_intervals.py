"""How misses of several laws join: squares of what is their own, sums of what they share."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable.model.intervals import joined

MISSES = st.lists(
    st.tuples(st.floats(1e-3, 1e3), st.floats(0, 1)).map(lambda pair: (pair[0], pair[0] * pair[1])),
    min_size=1,
    max_size=5,
)


def test_own_misses_join_in_squares_and_shared_ones_add_up() -> None:
    assert joined([(3.0, 0.0), (4.0, 0.0)]) == 5
    assert joined([(3.0, 3.0), (4.0, 4.0)]) == 7
    assert joined([(5.0, 3.0), (5.0, 3.0)]) == pytest.approx(math.sqrt(16 + 16 + 36))
    assert joined([]) == 0


@given(MISSES)
def test_a_sum_misses_by_at_least_its_largest_part_and_at_most_all(misses: list[tuple[float, float]]) -> None:
    found = joined(misses)
    assert max(miss for miss, _ in misses) * (1 - 1e-9) <= found <= sum(miss for miss, _ in misses) * (1 + 1e-9)


@given(MISSES)
def test_arrays_join_entry_by_entry(misses: list[tuple[float, float]]) -> None:
    columns = [(np.array([miss, 2 * miss]), np.array([shared, 2 * shared])) for miss, shared in misses]
    assert joined(columns) == pytest.approx([joined(misses), 2 * joined(misses)])
