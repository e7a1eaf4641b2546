"""What a paper found, predicted: found like a workload, by the name of the one that the paper is about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from sandtable import plugins
from sandtable.errors import ConfigError
from sandtable.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a paper found, predicted: the data of a figure, and whether the prediction shows the same.

    ``data`` has the columns panel, series, x and y; one figure has a panel each and a line per series. ``mark`` is a
    level to draw across.
    """

    name: str
    claim: str
    holds: bool
    evidence: str
    data: Table
    x: str
    y: str
    log_y: bool = True
    mark: float | None = None


class Findings(ABC):
    """The findings of a paper about one workload, ``name``, as predictions from device files."""

    name: ClassVar[str]

    @abstractmethod
    def findings(self) -> Sequence[Finding]:
        """Return every finding with its data."""


def findings_of(workload: str) -> Sequence[Finding]:
    """Return what a paper about this workload found, predicted.

    Raises:
        ConfigError: there is none.
    """
    found = plugins.instances(Findings, published=True)  # type: ignore[type-abstract]
    if workload not in found:
        raise ConfigError(f"{workload} has no findings of a paper to show")
    return found[workload].findings()
