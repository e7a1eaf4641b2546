"""What a study over seeds keeps of a run: a line of JSON in the file that ships, a sealed file in a folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from sandtable.system import atomic_files, checksums


@dataclass(frozen=True, kw_only=True)
class SeedRun:
    """A run of a study; subclasses are dataclasses that say what is kept of it."""

    def as_line(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def of_line(cls, line: str) -> Self:
        """Read `as_line` back."""
        return cls(**json.loads(line))

    @classmethod
    def shipped(cls, path: Path) -> list[Self]:
        """Return the runs of a file, one a line."""
        return [cls.of_line(line) for line in path.read_text(encoding="utf-8").splitlines()]

    @classmethod
    def kept(cls, path: Path) -> Self | None:
        """Return the run that `keep` wrote, None if there is none.

        Raises:
            ConfigError: it is damaged.
        """
        if not path.is_file():
            return None
        return cls.of_line(checksums.checked_json(path.read_bytes(), str(path), required=True).decode())

    def keep(self, path: Path) -> None:
        """Write it whole, with a checksum."""
        atomic_files.write_atomically(path, checksums.sealed_json(self.as_line()))
