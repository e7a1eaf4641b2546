"""Two thousand damaged configurations; `tests/bench/test_config_mutations_bench.py` tries a hundred thousand."""

from __future__ import annotations

from damaged_configs import outcomes


def test_a_damaged_config_is_a_shape_or_a_sentence() -> None:
    found = outcomes(2000, seed=1)
    assert found.total() == 2000
    assert min(found["shape"], found["sentence"]) > 200
