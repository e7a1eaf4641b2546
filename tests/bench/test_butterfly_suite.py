"""Predictions of the suite ``butterfly`` beside its runs, on a machine that is calibrated minutes before.

Nothing is fitted to these runs: operators are calibrated on sizes between those of the suite. What is held to a figure
is the median and the 90th percentile of the errors, and the width from which a butterfly takes less time than a dense
layer, predicted and measured.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from sandtable import api
from sandtable.runs.check import Checked

pytestmark = pytest.mark.skipif(
    os.environ.get("SANDTABLE_BENCH") != "1", reason="set SANDTABLE_BENCH=1 or run make bench"
)
TARGET_MEDIAN, TARGET_P90, TARGET_DOUBLINGS = 0.10, 0.25, 1.0
# what comparisons judge, and what crossings are found in, which a busy moment moves less
MEAN, STEP = "latency_s.mean", "latency_s.p50"
# seconds by structure and width, of layers with these rows on this many threads
Times = dict[tuple[str, int], float]


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> api.Check:
    """Calibrate this machine, or take the machine file that SANDTABLE_MACHINE names, and check the suite on it."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("butterfly")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        machine = os.environ.get("SANDTABLE_MACHINE") or calibrated(folder)
        return api.check("butterfly", machine=machine, store=folder)


def calibrated(folder: Path) -> str:
    """Return the path of a machine file with this machine's own parts and the operators of vision networks."""
    output = folder / "machine.yaml"
    api.calibrate(quick=True, storage_path=folder, output=output)
    api.calibrate(quick=False, only="vision", storage_path=folder, output=output)
    return str(output)


def test_errors_are_within_the_targets(checked: api.Check) -> None:
    errors = np.abs([row.error_frac for row in checked.comparison.comparisons if row.metric == MEAN])
    assert len(errors) >= 60
    median, p90 = float(np.median(errors)), float(np.percentile(errors, 90))
    worst = sorted(
        ((row.error_frac, row.scenario) for row in checked.comparison.comparisons if row.metric == MEAN),
        key=lambda item: -abs(item[0]),
    )
    print(f"\n{len(errors)} points: median {median:.1%}, 90th percentile {p90:.1%}")
    for error, scenario in worst[:15]:
        print(f"  {error:+.0%} {scenario}")
    assert median <= TARGET_MEDIAN
    assert p90 <= TARGET_P90


def test_the_width_from_which_a_butterfly_is_faster_is_foretold(checked: api.Check) -> None:
    off = []
    for key, (predicted, measured) in layers(checked.cases).items():
        if len({width for _, width in measured}) < 3:
            continue
        widths = [crossing(predicted), crossing(measured)]
        print(f"\n{key}: butterfly faster from n = {widths[0]:.0f} (predicted), {widths[1]:.0f} (measured)")
        off.append(abs(math.log2(widths[0] / widths[1])))
    assert len(off) >= 4
    assert max(off) <= TARGET_DOUBLINGS


def layers(cases: object) -> Mapping[tuple[int, int | None], tuple[Times, Times]]:
    """Return predicted and measured times of dense layers and butterflies of base 4, by rows and threads."""
    found: dict[tuple[int, int | None], tuple[Times, Times]] = {}
    for item in cases:  # type: ignore[attr-defined]
        assert isinstance(item, Checked)
        p = item.case.parameters
        plain = p.network == "layer" and p.base == 4 and p.precision == "float32"  # type: ignore[attr-defined]
        if not plain or p.structure not in ("dense", "butterfly"):  # type: ignore[attr-defined]
            continue
        assert item.measurement is not None
        key = p.rows, p.threads  # type: ignore[attr-defined]
        times = found.setdefault(key, ({}, {}))
        for into, result in zip(times, (item.prediction, item.measurement), strict=True):
            into[p.structure, p.n_in] = result.metrics[STEP].value  # type: ignore[attr-defined]
    return found


def crossing(times: Times) -> float:
    """Return the width from which a butterfly takes less time, between those timed by the ratio's logarithm.

    The narrowest where it does everywhere, twice the widest where it does nowhere.
    """
    widths = sorted({width for _, width in times})
    gains = [math.log(times["dense", width] / times["butterfly", width]) for width in widths]
    if gains[-1] < 0:
        return 2.0 * widths[-1]
    below = [index for index, gain in enumerate(gains) if gain < 0]
    if not below:
        return float(widths[0])
    (low, low_gain), (high, high_gain) = list(itertools.islice(zip(widths, gains, strict=True), below[-1], None))[
        :2
    ]
    return float(low * (high / low) ** (-low_gain / (high_gain - low_gain)))
