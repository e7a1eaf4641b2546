"""How large a report of a suite as long as `flash` is, and how fast a browser shows it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from chromium import Browser, chromium
from kept_runs import kept

from sandtable.report import run_report

pytestmark = [
    pytest.mark.skipif(os.environ.get("SANDTABLE_BENCH") != "1", reason="set SANDTABLE_BENCH=1 or run make bench"),
    pytest.mark.skipif(chromium() is None, reason="no Chromium on the PATH: apt-get install chromium"),
]
N_SCENARIOS = 28
MOST_BYTES, MOST_LOAD_S = 1_500_000, 1.0


def test_a_suite_loads_within_a_second(tmp_path: Path) -> None:
    changes = [
        {"name": f"s{n}", "parameters.window": 1 + n % 7, "parameters.tokens": 8 + n // 7}
        for n in range(N_SCENARIOS)
    ]
    runs = [kept(tmp_path, "flash_laptop", changes[n], n / 100 - 0.1) for n in range(N_SCENARIOS)]
    start = time.perf_counter()
    page = run_report.write_report(runs, tmp_path / "suite.html")
    wrote_s = time.perf_counter() - start
    browser = Browser(tmp_path / "profile")
    loads = []
    for _ in range(5):
        browser.open(page)
        loads.append(browser.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1e3)
    browser.close()
    size, median = page.stat().st_size, sorted(loads)[2]
    print(
        f"\nreport of {N_SCENARIOS} runs: {size / 1e6:.2f} MB, written in {wrote_s:.1f} s, loaded in {median:.2f} s"
    )
    assert size <= MOST_BYTES
    assert median < MOST_LOAD_S
