"""Points that were timed, on disk line by line, so that a calibration that was ended or killed can go on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sandtable.calibration.visits import Visit
from sandtable.demand.kernel import Dims
from sandtable.errors import ConfigError
from sandtable.system import atomic_files, checksums

SUFFIX = ".partial"


class PointLog:
    """What one calibration has timed so far: its settings in the first line, then one visit of a point each.

    Attributes:
        path: The file.
        settings: What the calibration was asked for, by name; JSON.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], lines: Sequence[str]) -> None:
        self.path, self.settings = path, settings
        self._visits: dict[str, Visit] = {}
        self._elapsed: dict[str, float] = {}
        for line in lines:
            found = json.loads(line)
            self._visits[found["point"]] = Visit(found["seconds"], found["lost_frac"], found.get("probe_s"))
            self._elapsed[found["round"]] = found["elapsed_s"]

    @classmethod
    def begin(cls, path: Path, settings: Mapping[str, Any]) -> PointLog:
        """Begin a file, in place of an older one."""
        atomic_files.write_atomically(path, checksums.sealed_line(json.dumps(settings)))
        return cls(path, settings, ())

    @classmethod
    def resume(cls, path: Path) -> PointLog:
        """Read what an earlier calibration timed; what comes after a line that was cut off or damaged is timed again.

        Raises:
            ConfigError: there is no such file, or its first line is damaged.
        """
        if not path.is_file():
            raise ConfigError("no calibration was ended here: begin one without --resume", file=str(path))
        lines = checksums.sealed_lines(path.read_bytes())
        if not lines:
            raise ConfigError("is damaged in its first line: begin anew without --resume", file=str(path))
        atomic_files.write_atomically(path, "".join(checksums.sealed_line(line) for line in lines))
        return cls(path, json.loads(lines[0]), lines[1:])

    @property
    def n_points(self) -> int:
        """Visits that are kept."""
        return len(self._visits)

    def elapsed_s(self, round_: str) -> float:
        """Return the seconds that a round has taken so far."""
        return self._elapsed.get(round_, 0.0)

    def known(self, index: int, kernel: str, dims: Dims) -> Visit | None:
        """Return a visit, None if there was none: which one of the point, kernel, point of its grid."""
        return self._visits.get(_key(index, kernel, dims))

    def add(self, round_: str, elapsed_s: float, index: int, kernel: str, dims: Dims, visit: Visit) -> None:
        """Keep a visit."""
        point = _key(index, kernel, dims)
        line = {"round": round_, "elapsed_s": elapsed_s, "point": point, **dataclasses.asdict(visit)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(checksums.sealed_line(json.dumps(line)))
        self._visits[point] = visit
        self._elapsed[round_] = elapsed_s

    def remove(self) -> None:
        """Remove the file: all is in the machine file by now."""
        self.path.unlink(missing_ok=True)


def _key(index: int, kernel: str, dims: Dims) -> str:
    return f"{index} {kernel} {json.dumps(dict(dims), sort_keys=True, default=str)}"
