"""Instruments are classes that are found; a package without one is told by a sentence, not by a missing function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from sandtable import plugins
from sandtable.calibration.gpu import recordings
from sandtable.demand.instruments import GpuTimer, StorageCrossCheck, gpu_timer, storage_cross_check
from sandtable.errors import NoDevice


def test_those_of_the_installed_packages_are_found() -> None:
    assert isinstance(storage_cross_check(), StorageCrossCheck)
    assert all(name == kind.name for name, kind in plugins.classes(GpuTimer).items())  # type: ignore[type-abstract]
    assert plugins.classes(GpuTimer)  # type: ignore[type-abstract]


def test_a_machine_without_a_usable_gpu_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "classes", lambda kind: {})
    for find in (gpu_timer, storage_cross_check):
        with pytest.raises(NoDevice, match="no installed package"):
            find()
    with pytest.raises(NoDevice, match="no installed package"):
        recordings.LiveGpus()


class Other(StorageCrossCheck):
    name: ClassVar[str] = "other"

    def bytes_per_s(self, path: Path, points: Sequence[tuple[int, int]], runtime_s: float) -> list[float]:
        return [float(chunk * depth) for chunk, depth in points]


def test_another_package_may_bring_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "classes", lambda kind: {"other": Other})
    assert storage_cross_check().bytes_per_s(Path(), [(4096, 2)], 1.0) == [8192.0]
