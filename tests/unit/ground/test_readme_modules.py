"""The lists of modules in the READMEs are those of the tree: every module once, in its room, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = {
    "simulator/README.md": "simulator/sandtable",
    "kernels/README.md": "kernels/sandtable_kernels",
    "workloads/README.md": "workloads/sandtable_workloads",
}
ROW = re.compile(r"^\| `(?P<room>[\w./]+)` \| (?P<modules>`[^|]*`) \|", re.MULTILINE)


def listed(readme: str) -> list[tuple[str, str]]:
    """Return (room, module) of every entry under "Modules"."""
    section = (ROOT / readme).read_text().split("\n## Modules\n", 1)[1].split("\n## ")[0]
    return [
        (row["room"].rstrip("/"), module)
        for row in ROW.finditer(section)
        for module in re.findall(r"`(\w+)`", row["modules"])
    ]


def of_the_tree(package: str) -> set[tuple[str, str]]:
    folder = ROOT / package
    paths = [path.relative_to(folder) for path in folder.rglob("*.py") if path.name != "__init__.py"]
    return {(path.parent.as_posix(), path.stem) for path in paths}


@pytest.mark.parametrize("readme", PACKAGES)
def test_every_module_is_listed_once_in_its_room(readme: str) -> None:
    found = listed(readme)
    assert sorted(entry for entry in set(found) if found.count(entry) > 1) == []
    assert sorted(of_the_tree(PACKAGES[readme]) - set(found)) == [], "missing in the table"
    assert sorted(set(found) - of_the_tree(PACKAGES[readme])) == [], "in the table only"


@pytest.mark.parametrize("package", PACKAGES.values())
def test_every_room_says_what_belongs_in_it(package: str) -> None:
    rooms = list((ROOT / package).rglob("__init__.py"))
    assert rooms
    assert [room for room in rooms if not room.read_text().startswith('"""')] == []
