"""The whole small alignment of one seed, PPO both ways: how long it takes, phase by phase.

Run with ``SANDTABLE_BENCH=1 pytest -s tests/bench/test_alignment_time.py``.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="models are PyTorch's")

from sandtable_workloads.rlhf.aligned.alignment_pipeline import align
from sandtable_workloads.rlhf.aligned.alignment_settings import Alignment, Ppo
from sandtable_workloads.rlhf.aligned.run_alignment import as_text

pytestmark = pytest.mark.skipif(os.environ.get("SANDTABLE_BENCH") != "1", reason="set SANDTABLE_BENCH=1 to time")
MOST_S = 300.0


def test_a_seed_is_aligned_both_ways_within_five_minutes(tmp_path: Path) -> None:
    plain = Ppo()
    begin = time.perf_counter()
    found = align(Alignment(), {"ppo_sft": plain, "ppo_soup": replace(plain, reference="soup")}, tmp_path)
    seconds = time.perf_counter() - begin
    print(f"\n{as_text(found)}")
    print(", ".join(f"{name} {each:.1f} s" for name, each in found.seconds.items()), f"in all {seconds:.1f} s")
    assert seconds < MOST_S
    # the policy learned: by the reward model, and by the gold score that no model saw
    for arm in found.arms:
        after, before = arm.judged["seen"].means(), found.before["sft"]["seen"].means()
        assert after["score"] > before["score"] + 0.5
        assert after["gold"] > before["gold"] + 0.02
