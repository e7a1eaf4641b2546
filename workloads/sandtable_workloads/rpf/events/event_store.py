"""Events in a folder, in groups of whole users: more than memory holds, read as a stream of batches of users.

``events.parquet`` has the columns user, item (places in the ids) and time (hours), by user and ascending in time
within one; each of its row groups holds whole users. ``users.parquet`` has the ids and numbers of events of the users,
``items.parquet`` the ids of the items.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sandtable.errors import ConfigError, missing_extra
from sandtable_kernels.poisson.event_pairs import EventPairs
from sandtable_workloads.rpf.events.event_checks import many
from sandtable_workloads.rpf.events.event_table import EventTable
from sandtable_workloads.rpf.events.generated_events import GeneratedEvents

Columns = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
EVENTS_PER_GROUP: Final = 250_000
_ABOUT: Final = b"sandtable.events"
_FORMAT: Final = 1
_KINDS: Final[dict[str, Callable[[str], Any]]] = {"str": str, "uuid": uuid.UUID}


@dataclass(frozen=True, eq=False)
class UserBatch:
    """All events of the users ``first_user .. last_user - 1`` of a store, by user and ascending in time.

    Attributes:
        first_user: Place of the first user in the ids of the store.
        last_user: Behind the last.
        user: [n], places in the ids of the store.
        item: [n], likewise.
        time: [n], hours.
        n_items: P of the store.
    """

    first_user: int
    last_user: int
    user: NDArray[np.int32]
    item: NDArray[np.int32]
    time: NDArray[np.float64]
    n_items: int

    @property
    def n_users(self) -> int:
        """Users of the batch, with those that have no event."""
        return self.last_user - self.first_user

    def pairs(self) -> EventPairs:
        """Return the events as pairs; users count from the batch's first, items are all of the store."""
        return EventPairs.of(self.user - self.first_user, self.item, self.time, self.n_users, self.n_items)


class EventStore:
    """A folder of events, opened for reading.

    Attributes:
        path: The folder.
        start: The hour from which events were recorded.
        end: The hour until which they were.
        origin: The UTC date of hour 0, where it is known.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = _open(self.path / "events.parquet")
        about = self._about()
        self.start, self.end = float(about["start"]), float(about["end"])
        self.origin = None if about["origin"] is None else np.datetime64(about["origin"], "s")
        self._bounds = np.array(about["bounds"], np.int64)

    def _about(self) -> dict[str, Any]:
        text = (self._file.metadata.metadata or {}).get(_ABOUT)
        about = json.loads(text) if text else {}
        if about.get("format") != _FORMAT:
            raise ConfigError("no store of events in groups of users: make one of this file", file=str(self.path))
        return dict(about)

    @property
    def n_events(self) -> int:
        """N."""
        return int(self._file.metadata.num_rows)

    @property
    def n_users(self) -> int:
        """U."""
        return int(self._bounds[-1])

    @cached_property
    def n_items(self) -> int:
        """P."""
        return int(_open(self.path / "items.parquet").metadata.num_rows)

    @property
    def n_batches(self) -> int:
        """Groups of users."""
        return self._bounds.size - 1

    @cached_property
    def user_ids(self) -> NDArray[Any]:
        """[U]."""
        return _read_ids(self.path / "users.parquet")

    @cached_property
    def item_ids(self) -> NDArray[Any]:
        """[P]."""
        return _read_ids(self.path / "items.parquet")

    @cached_property
    def events_per_user(self) -> NDArray[np.int64]:
        """[U]."""
        column = _open(self.path / "users.parquet").read(["n_events"]).column("n_events")
        return np.asarray(column.to_numpy(), np.int64)

    def bounds(self) -> NDArray[np.int64]:
        """Return [n_batches + 1], the users at which groups begin."""
        return self._bounds.copy()

    def batch(self, index: int) -> UserBatch:
        """Read one group of users."""
        rows = self._file.read_row_group(index)
        user, item, time = (rows.column(name).to_numpy() for name in ("user", "item", "time"))
        first, last = self._bounds[index : index + 2].tolist()
        return UserBatch(first, last, user, item, time, self.n_items)

    def batches(self, order: Iterable[int] | None = None) -> Iterator[UserBatch]:
        """Yield groups of users, all of them in the order of the file, or those of ``order``."""
        for index in range(self.n_batches) if order is None else order:
            yield self.batch(int(index))

    def table(self) -> EventTable:
        """Read all events into memory, ascending in time."""
        rows = self._file.read()
        user, item, time = (rows.column(name).to_numpy() for name in ("user", "item", "time"))
        order = np.argsort(time, kind="stable")
        return EventTable(
            user[order],
            item[order],
            time[order],
            self.user_ids,
            self.item_ids,
            start=self.start,
            end=self.end,
            origin=self.origin,
        )

    def summary(self) -> str:
        """Say in one line how large this is."""
        days = (self.end - self.start) / 24
        counts = f"{many(self.n_events, 'event')} of {many(self.n_users, 'user')} and {many(self.n_items, 'item')}"
        return f"{counts} over {days:,.1f} days, in {many(self.n_batches, 'group')} of users"

    # --- writing -------------------------------------------------------------------------------------------------

    @classmethod
    def of_generated(
        cls, path: str | os.PathLike[str], events: GeneratedEvents, events_per_group: int = EVENTS_PER_GROUP
    ) -> EventStore:
        """Generate a store without ever holding more than a block of its users."""
        ids = np.arange(events.n_users), np.arange(events.n_items)
        return cls.write(path, events.columns(), *ids, (0.0, events.hours), events_per_group=events_per_group)

    @classmethod
    def of_table(
        cls, path: str | os.PathLike[str], table: EventTable, events_per_group: int = EVENTS_PER_GROUP
    ) -> EventStore:
        """Write a table that is in memory."""
        order = np.argsort(table.user_code, kind="stable")
        columns = (table.user_code[order], table.item_code[order], table.time[order])
        return cls.write(
            path,
            [columns],
            table.user_ids,
            table.item_ids,
            (table.start, table.end),
            origin=table.origin,
            events_per_group=events_per_group,
        )

    @classmethod
    def write(
        cls,
        path: str | os.PathLike[str],
        pieces: Iterable[Columns],
        user_ids: NDArray[Any],
        item_ids: NDArray[Any],
        period: tuple[float, float],
        *,
        origin: np.datetime64 | None = None,
        events_per_group: int = EVENTS_PER_GROUP,
    ) -> EventStore:
        """Write a store, which stands under its name only once it is whole; one that stood there is replaced.

        Args:
            path: The folder.
            pieces: User, item (places in the ids) and time, whole users in ascending order over all pieces, ascending
                in time within a user.
            user_ids: [U]; integers, texts or UUIDs.
            item_ids: [P]; likewise.
            period: Hours from which and until which events were recorded.
            origin: The UTC date of hour 0.
            events_per_group: Events of a row group, about: a batch of what reads them.

        Raises:
            ConfigError: ids of another type, pieces out of order, or something else stands under that name.
        """
        target = Path(path)
        if target.exists() and not (target / "events.parquet").exists():
            raise ConfigError("this is no store of events, and is not written over", file=str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=".partial", dir=target.parent))
        try:
            writer = _GroupWriter(part / "events.parquet", len(user_ids), events_per_group)
            for columns in pieces:
                writer.add(*columns)
            date = None if origin is None else str(origin.astype("datetime64[s]"))
            counts = writer.close({"start": period[0], "end": period[1], "origin": date})
            _write_ids(part / "users.parquet", user_ids, n_events=counts)
            _write_ids(part / "items.parquet", item_ids)
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        return cls(target)


class _GroupWriter:
    """Cuts a stream of events, by user, into row groups of whole users."""

    def __init__(self, path: Path, n_users: int, most: int) -> None:
        pa, pq = _arrow()
        fields = [("user", pa.int32()), ("item", pa.int32()), ("time", pa.float64())]
        self._schema = pa.schema(fields)
        # sorted users and nearly random times: dictionaries cost time and save nothing
        self._writer = pq.ParquetWriter(path, self._schema, use_dictionary=False, compression="lz4")
        self._most = most
        self._counts = np.zeros(n_users, np.int64)
        self._bounds = [0]
        self._held: list[Columns] = []
        self._n_held = 0

    def add(self, user: NDArray[Any], item: NDArray[Any], time: NDArray[Any]) -> None:
        """Take the next users' events, and write what makes up whole groups."""
        if user.size == 0:
            return
        rises = user[1:] > user[:-1]
        if not np.all(rises | ((user[1:] == user[:-1]) & (time[1:] >= time[:-1]))) or user[0] < self._bounds[-1]:
            raise ConfigError("events of a store must come by user, and ascending in time within one")
        self._counts += np.bincount(user, minlength=self._counts.size)
        self._held.append((user.astype(np.int32), item.astype(np.int32), time.astype(np.float64)))
        self._n_held += user.size
        if self._n_held >= 2 * self._most:
            self._flush(whole=False)

    def _flush(self, *, whole: bool) -> None:
        """Write groups of what is held; the last user may go on in the next piece unless that is the ``whole``."""
        user, item, time = (np.concatenate(column) for column in zip(*self._held, strict=True))
        starts = np.flatnonzero(np.diff(user, prepend=-1))
        ends = np.append(starts[1:], user.size) if whole else starts[1:]
        begin = 0
        while begin < user.size and ends.size and begin < ends[-1]:
            reached = int(np.searchsorted(ends, begin + self._most, side="left"))
            if reached == ends.size and not whole:
                break
            end = int(ends[min(reached, ends.size - 1)])
            self._group(user[begin:end], item[begin:end], time[begin:end])
            begin = end
        self._held = [(user[begin:], item[begin:], time[begin:])]
        self._n_held = user.size - begin

    def _group(self, user: NDArray[Any], item: NDArray[Any], time: NDArray[Any]) -> None:
        pa, _ = _arrow()
        rows = pa.Table.from_arrays([pa.array(user), pa.array(item), pa.array(time)], schema=self._schema)
        self._writer.write_table(rows, row_group_size=max(user.size, 1))
        self._bounds.append(int(user[-1]) + 1)

    def close(self, about: dict[str, Any]) -> NDArray[np.int64]:
        """Write the rest, and what is known of the whole; return the events of each user."""
        if self._n_held:
            self._flush(whole=True)
        if len(self._bounds) == 1:
            raise ConfigError("a store of events needs at least one")
        self._bounds[-1] = self._counts.size
        text = json.dumps({"format": _FORMAT, **about, "bounds": self._bounds})
        self._writer.add_key_value_metadata({_ABOUT.decode(): text})
        self._writer.close()
        return self._counts


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise missing_extra("pyarrow", "parquet") from None
    return pa, pq


def _open(path: Path) -> Any:
    pa, pq = _arrow()
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise ConfigError("no store of events: this file of it is not there", file=str(path)) from None
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"cannot be read: {error}", file=str(path)) from None


def _write_ids(path: Path, ids: NDArray[Any], **columns: NDArray[Any]) -> None:
    pa, pq = _arrow()
    kind = _kind(ids)
    values = ids.astype(np.int64) if kind == "int" else [str(value) for value in ids.tolist()]
    table = pa.table({"id": pa.array(values, pa.int64() if kind == "int" else pa.string()), **columns})
    pq.write_table(table.replace_schema_metadata({_ABOUT: kind}), path)


def _kind(ids: NDArray[Any]) -> str:
    """Return how ids are written: as integers, or as text that is read as text or as a UUID."""
    if ids.dtype.kind in "iu":
        return "int"
    kinds = {type(value) for value in ids.tolist()}
    known = {frozenset({str}): "str", frozenset({uuid.UUID}): "uuid"}.get(frozenset(kinds))
    if known is None:
        named = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise ConfigError(
            f"a store holds ids that are integers, texts or UUIDs, all of one kind: these are {named}"
        )
    return known


def _read_ids(path: Path) -> NDArray[Any]:
    file = _open(path)
    kind = (file.schema_arrow.metadata or {}).get(_ABOUT, b"int").decode()
    column = file.read(["id"]).column("id")
    if kind == "int":
        return np.asarray(column.to_numpy())
    ids = np.empty(len(column), object)
    ids[:] = [_KINDS[kind](value) for value in column.to_pylist()]
    return ids
