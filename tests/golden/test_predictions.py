"""What the shipped scenarios predict stays what it is, until somebody changes it on purpose.

``SANDTABLE_UPDATE_GOLDEN=1`` writes the files anew; what moved then goes under "Predictions changed" in the CHANGELOG.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandtable.contracts import run_command

FOLDER = Path(__file__).parent / "predictions"
UPDATE = os.environ.get("SANDTABLE_UPDATE_GOLDEN") == "1"
# sums in another order; a law that changes moves far more
SAME_FRAC = 1e-9
PUBLISHED = "published_shipped"
SCENARIOS = sorted(path.stem for path in FOLDER.glob("*.json") if path.stem != PUBLISHED)


def differences(wanted: Any, found: Any, path: str = "") -> Iterator[str]:
    """Yield where two JSON values differ, numbers beyond rounding."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in [*wanted, *(key for key in found if key not in wanted)]:
            yield from differences(wanted.get(key), found.get(key), f"{path}.{key}")
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for index, pair in enumerate(zip(wanted, found, strict=True)):
            yield from differences(*pair, f"{path}[{index}]")
    elif isinstance(wanted, int | float) and isinstance(found, int | float):
        if not math.isclose(wanted, found, rel_tol=SAME_FRAC):
            yield f"{path}: {wanted} became {found}"
    elif wanted != found:
        yield f"{path}: {wanted!r} became {found!r}"


def held(name: str, text: str) -> None:
    path = FOLDER / f"{name}.json"
    if UPDATE:
        path.write_text(text)
    assert list(differences(json.loads(path.read_text()), json.loads(text)))[:5] == []


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_is_predicted_as_before(name: str, in_tmp: Path) -> None:
    held(name, run_command("simulate", name, "--format", "json").out)


def test_shipped_rows_are_scored_as_before(in_tmp: Path) -> None:
    held(PUBLISHED, run_command("published", "--format", "json").out)


def test_a_difference_is_found() -> None:
    assert list(differences({"a": [1.0]}, {"a": [1.0 + 1e-6]})) == [".a[0]: 1.0 became 1.000001"]
    assert list(differences({"a": 1}, {"a": 1, "b": 2})) == [".b: None became 2"]
