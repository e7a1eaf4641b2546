"""A hundred thousand damaged configurations of models, none of which ends in a traceback or takes two seconds."""

from __future__ import annotations

import os

import pytest
from damaged_configs import outcomes

pytestmark = pytest.mark.skipif(
    os.environ.get("SANDTABLE_BENCH") != "1", reason="set SANDTABLE_BENCH=1 or run make bench"
)


@pytest.mark.parametrize("seed", range(2, 12))
def test_damaged_configs_are_shapes_or_sentences(seed: int) -> None:
    assert outcomes(10_000, seed).total() == 10_000
