"""The public names of the recommender: all there, each loaded when it is used, and nothing heavy before."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sandtable_workloads import rpf

HEAVY = {"torch", "numba", "scipy", "pandas", "pyarrow"}


@pytest.mark.parametrize("name", rpf.__all__)
def test_every_public_name_is_there(name: str) -> None:
    found = getattr(rpf, name)
    assert found.__name__ == name
    assert found.__module__ == f"sandtable_workloads.rpf.{rpf._MODULE_OF[name]}"
    assert found.__doc__


def test_lists_agree() -> None:
    assert sorted(rpf.__all__) == sorted(rpf._MODULE_OF)
    with pytest.raises(AttributeError, match="no attribute 'HPRF'"):
        _ = rpf.HPRF  # type: ignore[attr-defined]


def test_nothing_heavy_is_loaded_before_it_is_used() -> None:
    code = f"""
import sys
from pathlib import Path
from sandtable_workloads.rpf import EventTable, GeneratedEvents, KnownParameters, read_events, EventStore, HRPF
print(*sorted({HEAVY!r} & {{name.split('.')[0] for name in sys.modules}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("chapter", ["rpf: events", "rpf: items that excite others"])
def test_what_the_readme_shows_is_what_comes_out(chapter: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    text = (Path(__file__).parents[3] / "workloads" / "README.md").read_text().partition(f"\n## {chapter}\n")[2]
    code, shown = re.findall(r"```(?:python|text)\n(.*?)```", text, re.DOTALL)[:2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
    )
    assert done.stderr == ""
    assert done.stdout == shown
