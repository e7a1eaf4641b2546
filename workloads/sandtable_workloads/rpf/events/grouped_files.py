"""Files of events in any order, larger than memory, made into a store in groups of users."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sandtable.errors import ConfigError
from sandtable_workloads.rpf.events.event_checks import coded, hours
from sandtable_workloads.rpf.events.event_files import FileOptions, FilePart, read_parts
from sandtable_workloads.rpf.events.event_store import EVENTS_PER_GROUP, Columns, EventStore
from sandtable_workloads.rpf.events.event_table import Duplicates

_RECORD: Final = np.dtype([("user", "<i4"), ("item", "<i4"), ("time", "<f8")])
_FIRST_MONDAY: Final = np.datetime64("1970-01-05", "s")
_HOURS_PER_WEEK: Final = 168
_ROWS: Final = 1_000_000
_WHOLE: Final = r"0|-?[1-9]\d{0,17}"


def group_events(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    target: str | os.PathLike[str],
    options: FileOptions = FileOptions(),  # noqa: B008 - frozen
    *,
    duplicates: Duplicates = "keep",
    n_parts: int = 64,
    rows: int = _ROWS,
    events_per_group: int = EVENTS_PER_GROUP,
    progress: Callable[[str], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> EventStore:
    """Read files, a million rows at a time, and write a store of their events.

    Users are dealt to ``n_parts`` files beside ``target``, of 16 bytes an event, each of which is then sorted in
    memory: so memory holds the ids, a million rows, and a part twice. Users of a part stand together in the store.

    Args:
        paths: A file or several, in any order; see `read_events` for what they may be.
        target: Folder of the store.
        options: What to read of each.
        duplicates: See `EventTable.of`.
        n_parts: Files on the way.
        rows: Rows that are read at a time.
        events_per_group: Events of a row group of the store, about.
        progress: Told how many events are read.
        say: Told what was guessed or is odd, once each.

    Raises:
        ConfigError: see `read_events`; hours and dates together.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sandtable-events-", dir=Path(target).parent) as folder:
        deal = _Deal(Path(folder), n_parts)
        try:
            for path in paths:
                for part in read_parts(Path(path), options, rows):
                    for note in deal.add(part):
                        say(note)
                    progress(f"{deal.n_events:,} events read")
        finally:
            deal.close()
        if deal.n_events == 0:
            raise ConfigError("no events: at least one row with user, item and time is needed")
        return EventStore.write(
            target,
            deal.pieces(duplicates),
            deal.users.ids[deal.order()],
            deal.items.ids,
            (deal.first - deal.shift, deal.last - deal.shift),
            origin=deal.origin,
            events_per_group=events_per_group,
        )


@dataclass
class _KnownIds:
    """Ids in the order in which they first occurred: as texts, so that whole numbers of all files are the same ones."""

    _index: Any = None
    _texts: bool = False

    def __len__(self) -> int:
        return len(self._index)

    @property
    def ids(self) -> NDArray[Any]:
        """All of them, as integers where all are written as such, unless a file had them as texts by type."""
        import pandas as pd

        ids = np.asarray(self._index)
        texts = pd.Series(ids)
        if self._texts or not pd.api.types.is_string_dtype(texts) or not texts.str.fullmatch(_WHOLE).all():
            return ids
        return np.asarray(texts.astype(np.int64))

    def places(self, distinct: NDArray[Any], typed: bool) -> NDArray[np.int32]:
        """Return the places of ids, of a file that says their type or not, after adding those that are new."""
        import pandas as pd

        if distinct.dtype.kind in "iu":
            distinct = distinct.astype(str).astype(object)
        else:
            self._texts |= typed
        if self._index is None:
            self._index = pd.Index(distinct)
        found = self._index.get_indexer(distinct)
        new = found < 0
        if new.any():
            found[new] = len(self._index) + np.arange(int(new.sum()))
            self._index = self._index.append(pd.Index(distinct[new]))
        return np.asarray(found, np.int32)


@dataclass
class _Deal:
    """Events dealt to files by user; hours count from `_FIRST_MONDAY` where they are dates."""

    folder: Path
    n_parts: int
    users: _KnownIds = field(default_factory=_KnownIds)
    items: _KnownIds = field(default_factory=_KnownIds)
    first: float = np.inf
    last: float = -np.inf
    dated: bool | None = None
    n_events: int = 0
    _files: dict[int, Any] = field(default_factory=dict)
    _said: list[str] = field(default_factory=list)

    @property
    def shift(self) -> float:
        """Hours from `_FIRST_MONDAY` to the Monday before the first event."""
        return _HOURS_PER_WEEK * (self.first // _HOURS_PER_WEEK) if self.dated else 0.0

    @property
    def origin(self) -> np.datetime64 | None:
        return _FIRST_MONDAY + np.timedelta64(int(self.shift), "h") if self.dated else None

    def add(self, part: FilePart) -> list[str]:
        """Check rows as a table does, and append them to the files of their users; return what is to be said first."""
        columns, where = part.columns, part.where
        if len(columns["user"]) == 0:
            return []
        read = hours(columns["time"], part.time_unit, _FIRST_MONDAY, where)
        if self.dated not in (None, read.dated):
            raise where.error("some of these times are dates and others hours: they cannot be put in order")
        self.dated = read.dated
        user, user_ids = coded(columns["user"], "user", where)
        item, item_ids = coded(columns["item"], "item", where)
        rows = np.empty(user.size, _RECORD)
        rows["user"] = self.users.places(user_ids, part.typed)[user]
        rows["item"] = self.items.places(item_ids, part.typed)[item]
        rows["time"] = read.hours
        self.n_events += user.size
        self.first, self.last = min(self.first, float(read.hours.min())), max(self.last, float(read.hours.max()))
        self._append(rows)
        new = [note for note in (*part.notes, *read.notes) if note not in self._said]
        self._said += new
        return new

    def _append(self, rows: NDArray[Any]) -> None:
        part = rows["user"] % self.n_parts
        order = np.argsort(part, kind="stable")
        bounds = np.searchsorted(part[order], np.arange(self.n_parts + 1))
        for index in np.flatnonzero(np.diff(bounds)).tolist():
            if index not in self._files:
                self._files[index] = self._path(index).open("wb")
            rows[order[bounds[index] : bounds[index + 1]]].tofile(self._files[index])

    def _path(self, index: int) -> Path:
        return self.folder / f"{index}.rows"

    def close(self) -> None:
        """Close the files: all is dealt."""
        for file in self._files.values():
            file.close()

    def order(self) -> NDArray[np.int64]:
        """Return [U], the users in the order of the store: by part, and as they occurred within one."""
        users = np.arange(len(self.users))
        return np.lexsort((users, users % self.n_parts))

    def pieces(self, duplicates: Duplicates) -> Iterator[Columns]:
        """Yield the events of each part, by user and time."""
        place = np.empty(len(self.users), np.int64)
        place[self.order()] = np.arange(place.size)
        for index in sorted(self._files):
            rows = np.fromfile(self._path(index), _RECORD)
            user = place[rows["user"]]
            order = np.lexsort((rows["item"], rows["time"], user) if duplicates == "drop" else (rows["time"], user))
            user, item, time = user[order], rows["item"][order], rows["time"][order]
            if duplicates == "drop":
                kept = np.append(True, (np.diff(user) != 0) | (np.diff(item) != 0) | (np.diff(time) != 0))
                user, item, time = user[kept], item[kept], time[kept]
            yield user, item, time - self.shift
