"""Events from files that a user has: Last.fm, Retailrocket, Tmall, Taobao, MovieLens, or any with named columns.

Nothing is downloaded. What a file says of itself is guessed from its first lines (`file_layouts`), and can be given.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from sandtable import units
from sandtable.errors import ConfigError, DoesNotFit, missing_extra
from sandtable.system import limits
from sandtable_workloads.rpf.events.event_checks import TimeUnit, Where
from sandtable_workloads.rpf.events.event_store import EventStore
from sandtable_workloads.rpf.events.event_table import Duplicates, EventTable
from sandtable_workloads.rpf.events.file_layouts import Layout, column_of, first_lines, layout_of, regular

_PARQUET: Final = (".parquet", ".pq")
_ROWS: Final = 1_000_000
# what a row takes at least while it is read: at the peak 150 to 170 bytes were seen, of text, numbers and Parquet
_BYTES_A_ROW: Final = 120
# the year of Tmall's logs, whose times are month and day
_YEAR_OF_DAYS: Final = 2014


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """What to read of a file; whatever is None is guessed.

    Attributes:
        user: Column of users.
        item: Column of items; several joined by ``+`` name an item together (``artist+track``).
        time: Column of times.
        time_unit: Of times that are numbers: ``h``, ``s`` or ``ms``.
        kinds: Kinds of events that count (``buy``, ``transaction``), of the column that says so; None: all.
        min_rating: Least rating that counts, of the column of ratings; None: all.
    """

    user: str | None = None
    item: str | None = None
    time: str | None = None
    time_unit: TimeUnit | None = None
    kinds: tuple[str, ...] | None = None
    min_rating: float | None = None

    def __post_init__(self) -> None:
        if self.time_unit not in (None, *get_args(TimeUnit)):
            raise ConfigError(f"the unit of times is h, s or ms, not {self.time_unit!r}")

    @property
    def named(self) -> frozenset[str]:
        """Names of columns that are given."""
        given = (self.user, self.time, *(self.item or "").split("+"))
        return frozenset(name.strip() for name in given if name)


def read_events(
    path: str | os.PathLike[str],
    options: FileOptions = FileOptions(),
    *,
    duplicates: Duplicates = "keep",
    until: float | None = None,
) -> EventTable:
    """Read a file of events, or a store of them, into memory.

    Args:
        path: Text with a separator, also compressed, Parquet, or the folder of an `EventStore`.
        options: What to read of it.
        duplicates: See `EventTable.of`.
        until: Likewise.

    Raises:
        ConfigError: what is no file of events, with its line where there is one.
        DoesNotFit: memory has no room for so many.
        NoDevice: Parquet without the package that reads it.
    """
    path = Path(path)
    if (path / "events.parquet").exists():
        store = EventStore(path)
        _check_memory(store.n_events)
        return store.table()
    regular(path)
    _check_memory(_about_rows(path))
    (part,) = read_parts(path, options)
    table = EventTable.of(
        part.columns, time_unit=part.time_unit, duplicates=duplicates, until=until, where=part.where
    )
    return replace(table, timed=part.timed, notes=(*part.notes, *table.notes))


def _check_memory(rows: int) -> None:
    needed, there = _BYTES_A_ROW * rows, limits.memory_bytes()
    if needed > there:
        raise DoesNotFit(
            f"reading about {units.format_count(rows)} events takes {units.format_bytes(needed)} and "
            f"{units.format_bytes(there)} are there: stream them from disk (group_events, --stochastic)"
        )


def _about_rows(path: Path) -> int:
    """Return how many rows a file has: exactly of Parquet, of text as its first lines are long, compressed or not."""
    if path.suffix in _PARQUET:
        return int(_parquet_file(path).metadata.num_rows)
    lines = first_lines(path)
    return path.stat().st_size * len(lines) // sum(len(line.encode()) + 1 for line in lines)


@dataclass(frozen=True)
class FilePart:
    """Rows of a file: the columns user, item and time, where they stand, and whether the file says their types."""

    columns: dict[str, Any]
    where: Where
    time_unit: TimeUnit | None
    typed: bool
    timed: bool = True
    notes: tuple[str, ...] = ()


def read_parts(path: Path, options: FileOptions, rows: int | None = None) -> Iterator[FilePart]:
    """Yield a file in parts of at most ``rows``, None: as one.

    Raises:
        ConfigError: see `read_events`.
    """
    regular(path)
    if path.suffix in _PARQUET:
        yield from _parquet_parts(path, options, rows)
        return
    layout = layout_of(path, options.named)
    roles = _roles(layout.columns, options, str(path))
    for frame, first_line in _text_frames(path, layout, roles, rows):
        where = Where(str(path), first_line)
        yield _part(frame, roles, options, where, layout)


@dataclass(frozen=True)
class _Roles:
    """The columns of a file that are read."""

    user: str
    items: tuple[str, ...]
    time: str | None
    kind: str | None
    rating: str | None

    @property
    def all(self) -> tuple[str, ...]:
        named = (self.user, *self.items, self.time, self.kind, self.rating)
        return tuple(dict.fromkeys(name for name in named if name is not None))

    @property
    def ids(self) -> tuple[str, ...]:
        return (self.user, *self.items)


def _roles(columns: tuple[str, ...], options: FileOptions, file: str) -> _Roles:
    user = column_of("user", columns, options.user, file)
    if options.item is not None:
        items = tuple(str(column_of("item", columns, name.strip(), file)) for name in options.item.split("+"))
    else:
        items = tuple(name for name in (column_of("item", columns, None, file),) if name is not None)
    time = column_of("time", columns, options.time, file)
    if user is None or not items or (time is None and "plays" not in columns):
        role = "user" if user is None else "item" if not items else "time"
        listed = ", ".join(repr(name) for name in columns[:12])
        raise ConfigError(
            f"which column is the {role}? None of {listed} is named like one: name it with {role!r}", file=file
        )
    kind = column_of("kind", columns, None, file) if options.kinds is not None else None
    rating = column_of("rating", columns, None, file) if options.min_rating is not None else None
    if options.kinds is not None and kind is None:
        raise ConfigError("no column says of which kind an event is (event, behavior or action)", file=file)
    if options.min_rating is not None and rating is None:
        raise ConfigError("no column has ratings", file=file)
    return _Roles(user, items, time, kind, rating)


def _part(frame: Any, roles: _Roles, options: FileOptions, where: Where, layout: Layout | None) -> FilePart:
    """Keep the rows that count, and name their columns."""
    notes = _said(roles, layout)
    wanted = ~frame.isna().all(axis=1).to_numpy()  # blank lines
    if options.kinds is not None:
        kinds = frame[roles.kind].astype(str)
        wanted &= kinds.isin(options.kinds).to_numpy()
        if not wanted.any():
            listed = ", ".join(sorted(kinds.dropna().unique().tolist())[:12])
            raise where.error(f"no event is of kind {' or '.join(options.kinds)}: there are {listed}")
    if options.min_rating is not None:
        wanted &= frame[roles.rating].to_numpy(np.float64) >= options.min_rating
    if not wanted.all():
        places = np.flatnonzero(wanted)
        before = where.places
        where = replace(where, places=places if before is None else before[places])
        frame = frame.iloc[places].reset_index(drop=True)
    item = frame[roles.items[0]]
    for more in roles.items[1:]:
        item = item.astype(str) + " / " + frame[more].astype(str)
    if roles.time is None:
        notes.append("there are no times: each row is one event, and only PF and HPF say anything about them")
        made_up = np.arange(len(frame)) / max(len(frame), 1)
        columns = {"user": frame[roles.user], "item": item, "time": made_up}
        return FilePart(columns, where, "h", layout is None, timed=False, notes=tuple(notes))
    time, said = _dates_of_days(frame[roles.time], roles.time, options.time_unit)
    columns = {"user": frame[roles.user], "item": item, "time": time}
    return FilePart(columns, where, options.time_unit, layout is None, notes=(*notes, *said))


def _said(roles: _Roles, layout: Layout | None) -> list[str]:
    """Say what was guessed, unless the columns are called what they are."""
    found = {"user": roles.user, "item": "+".join(roles.items), "time": roles.time or "none"}
    guessed = ", ".join(f"{role} is {name}" for role, name in found.items() if role != name)
    known = f"read as {layout.name}" if layout is not None and not layout.has_names else ""
    text = ": ".join(part for part in (known, guessed) if part)
    return [text] if text else []


def _dates_of_days(time: Any, name: str, unit: TimeUnit | None) -> tuple[Any, tuple[str, ...]]:
    """Return dates where whole numbers are days as 20141206, or 1206 as in Tmall's ``time_stamp``; else ``time``."""
    import pandas as pd

    if unit is not None or len(time) == 0 or not pd.api.types.is_integer_dtype(time.dtype):
        return time, ()
    numbers = time.to_numpy(np.int64)
    if name.lower() in ("time_stamp", "time_id") and numbers.max() <= 1231:
        numbers = numbers + 10_000 * _YEAR_OF_DAYS
        note = f"times are month and day, taken as of {_YEAR_OF_DAYS}: events of one day count as simultaneous"
    else:
        note = "times are days: events of one day count as simultaneous"
    if not 19700101 <= numbers.min() <= numbers.max() <= 21001231:
        return time, ()
    days = pd.to_datetime(pd.Series(numbers).astype(str), format="%Y%m%d", errors="coerce")
    return (time, ()) if days.isna().any() else (days, (note,))


# --- text ---------------------------------------------------------------------------------------------------------


def _text_frames(path: Path, layout: Layout, roles: _Roles, rows: int | None) -> Iterator[tuple[Any, int]]:
    """Yield frames of a text file with the line of their first row.

    Whole numbers are read as such only where the first lines say so; where a later one is none, everything is text.
    In parts, ids are text at once: which they are must not change on the way.
    """
    exact = _whole_numbers(path, layout, roles) if rows is None else {}
    try:
        if rows is None:
            yield _whole(path, layout, roles, exact)
        else:
            yield from _parsed(path, layout, roles, exact, rows)
    except (ValueError, Warning) as error:
        raise _unreadable(error, path, layout) from None


def _whole(path: Path, layout: Layout, roles: _Roles, exact: dict[str, str]) -> tuple[Any, int]:
    import pandas as pd

    try:
        parts = list(_parsed(path, layout, roles, exact, None))
    except (ValueError, OverflowError):
        if not exact:
            raise
        return _whole(path, layout, roles, {})
    frames = [frame for frame, _ in parts]
    return (pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]), parts[0][1]


def _unreadable(error: Exception, path: Path, layout: Layout) -> ConfigError:
    if isinstance(error, UnicodeDecodeError):
        return ConfigError("this is no UTF-8 text: save it as UTF-8", file=str(path))
    found = re.search(r"Expected \d+ fields in line (\d+), saw", str(error))
    line = int(found[1]) if found else 1 + layout.has_names if isinstance(error, Warning) else None
    if line is not None:
        most = len(layout.columns)
        return ConfigError(f"more fields than the {most} of the first line", file=str(path), line=line)
    return ConfigError(f"cannot be read: {error}", file=str(path))


def _whole_numbers(path: Path, layout: Layout, roles: _Roles) -> dict[str, str]:
    """Return the columns that the first lines have as whole numbers without leading zeros."""
    marks = layout.separator * layout.stride
    lines = first_lines(path)[1 if layout.has_names else 0 :]
    split = [line.split() if marks == r"\s+" else line.split(marks) for line in lines]
    wanted = (*roles.ids, *(name for name in (roles.time,) if name is not None))
    exact = {}
    for name in wanted:
        at = layout.columns.index(name)
        cells = [fields[at].strip('" ') for fields in split if len(fields) > at]
        # a day may be written 0829, but 007 is not the user 7
        whole = r"\d{1,18}" if name == roles.time else r"0|-?[1-9]\d{0,17}"
        if cells and all(re.fullmatch(whole, cell) for cell in cells):
            exact[name] = "int64"
    return exact


def _parsed(
    path: Path, layout: Layout, roles: _Roles, exact: dict[str, str], rows: int | None
) -> Iterator[tuple[Any, int]]:
    import pandas as pd

    names = [name for column in layout.columns for name in (column, *[""] * (layout.stride - 1))]
    names = [name or f"_{place}" for place, name in enumerate(names)][: len(names) - layout.stride + 1]
    text: Any = {name: exact.get(name, str) for name in names}
    if roles.rating is not None:
        text[roles.rating] = "float64"
    reader = pd.read_csv(
        path,
        sep=layout.separator,
        header=None,
        skiprows=1 if layout.has_names else 0,
        names=names,  # all of them, and no usecols: pandas would cut lines that are too long
        dtype=text,
        index_col=False,
        keep_default_na=False,  # there are artists named None and NA
        na_values=[""],
        skip_blank_lines=False,
        quoting=0 if layout.quoted else 3,
        encoding="utf-8",
        chunksize=rows or _ROWS,
    )
    first_line = 2 if layout.has_names else 1
    with reader, warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        for frame in reader:
            yield frame[list(roles.all)].reset_index(drop=True), first_line
            first_line += len(frame)


# --- Parquet ------------------------------------------------------------------------------------------------------


def _parquet_parts(path: Path, options: FileOptions, rows: int | None) -> Iterator[FilePart]:
    file = _parquet_file(path)
    import pyarrow as pa

    try:
        roles = _roles(tuple(file.schema_arrow.names), options, str(path))
        read = [file.read(list(roles.all))] if rows is None else file.iter_batches(rows, columns=list(roles.all))
        done = 0
        for batch in read:
            frame = batch.to_pandas()
            # no line, but the row of the file
            where = Where(str(path), None, _places(done, len(frame)) if done else None)
            yield _part(frame, roles, options, where, None)
            done += len(frame)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"cannot be read: {error}", file=str(path)) from None


def _parquet_file(path: Path) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise missing_extra("pyarrow", "parquet") from None
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"cannot be read: {error}", file=str(path)) from None


def _places(first: int, n: int) -> NDArray[np.int64]:
    return np.arange(first, first + n)
