"""Which columns of a file are user, item and time: known data sets by their looks, others by names of columns."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sandtable.errors import ConfigError, did_you_mean

_OPEN: Final[dict[str, Callable[..., Any]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_SAMPLE_LINES: Final = 200
# names in lower case without what separates their words; the first that a file has is taken
NAMES: Final[dict[str, tuple[str, ...]]] = {
    "user": (
        "user",
        "userid",
        "useid",
        "visitorid",
        "uid",
        "customer",
        "customerid",
        "member",
        "memberid",
        "listener",
    ),
    "item": (
        *("item", "itemid", "iteid", "movieid", "artist", "artistname", "artname", "artistid", "artid", "track"),
        *("trackid", "product", "productid", "sku", "song", "songid", "book", "bookid", "isbn", "iid"),
    ),
    "time": (
        *(
            "time",
            "timestamp",
            "timeid",
            "ts",
            "unixtime",
            "datetime",
            "date",
            "unixreviewtime",
            "created",
            "createdat",
        ),
        *("hour", "hours"),
    ),
    "kind": (
        "event",
        "behavior",
        "behaviortype",
        "behaviour",
        "actiontype",
        "action",
        "actid",
        "eventtype",
        "kind",
    ),
    "rating": ("rating", "stars", "score", "overall"),
    "follows": (
        "follows",
        "followee",
        "followeeid",
        "friend",
        "friendid",
        "followed",
        "source",
        "target",
        "userid2",
    ),
}


@dataclass(frozen=True)
class Layout:
    """How a text file holds events.

    Attributes:
        name: What it is called in notes.
        separator: Between fields, as pandas takes it.
        columns: Names of all fields in order.
        has_names: Whether the first line has them.
        stride: Fields that pandas sees for each: 2 where the separator is doubled.
        quoted: Whether fields may stand in double quotes.
    """

    name: str
    separator: str
    columns: tuple[str, ...]
    has_names: bool
    stride: int = 1
    quoted: bool = True


def lower(name: str) -> str:
    """Return a name without case and without what separates words."""
    return re.sub(r"[\W_]+", "", name).lower()


def column_of(role: str, columns: tuple[str, ...], given: str | None, file: str) -> str | None:
    """Return the column that has a role: the one ``given``, or the first by a usual name; None without any.

    Raises:
        ConfigError: no column has the name that was given.
    """
    if given is not None:
        if given not in columns:
            raise ConfigError(f"no column {given!r} for {role}{did_you_mean(given, columns)}", file=file)
        return given
    plain = {lower(name): name for name in reversed(columns)}
    return next((plain[name] for name in NAMES[role] if name in plain), None)


def layout_of(path: Path, named: frozenset[str] = frozenset()) -> Layout:
    """Look at the first lines of a text file, whose columns may be ``named``.

    Raises:
        ConfigError: no file, an empty one, no text, or lines that are no fields of anything known.
    """
    lines = first_lines(path)
    first = lines[0]
    if "::" in first:
        return Layout("MovieLens", ":", ("user", "item", "rating", "timestamp"), has_names=False, stride=2)
    separator = next((mark for mark in ("\t", ",", ";", "|") if mark in first), r"\s+")
    fields = _fields(first, separator)
    usual = sum(any(lower(field) in names for names in NAMES.values()) for field in fields)
    if usual >= 2 or named & set(fields):
        if len(set(fields)) < len(fields):
            twice = next(field for field in fields if fields.count(field) > 1)
            raise ConfigError(f"column {twice!r} stands twice: keep one of them", file=str(path), line=1)
        return Layout("columns by name", separator, tuple(fields), has_names=True, quoted=separator != "\t")
    known = _without_names(fields)
    if known is None:
        raise ConfigError(
            f"{len(fields)} columns without names: a first line with user, item and time is needed",
            file=str(path),
            line=1,
        )
    name, columns = known
    return Layout(name, separator, columns, has_names=False, quoted=separator != "\t")


def _fields(line: str, separator: str) -> list[str]:
    parts = line.split() if separator == r"\s+" else line.split(separator)
    return [part.strip().strip('"') for part in parts]


_NUMBER: Final = r"-?\d+(\.\d+)?"
_DATE: Final = r"\d{4}-\d\d-\d\d.*"
# what data sets without a line of names look like: a pattern for each field
_KNOWN: Final[tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]] = (
    (
        "Last.fm 1K",
        (".*", _DATE, ".*", ".*", ".*", ".*"),
        ("user", "timestamp", "artist_id", "artist", "track_id", "track"),
    ),
    ("Last.fm 360K", ("[0-9a-f]{40}", ".*", ".*", r"\d+"), ("user", "artist_id", "artist", "plays")),
    ("MovieLens 100K", (r"\d+", r"\d+", r"[1-5]", r"\d{8,}"), ("user", "item", "rating", "timestamp")),
    (
        "Taobao",
        (".*", ".*", ".*", "pv|buy|cart|fav", r"\d+"),
        ("user", "item", "category", "behavior", "timestamp"),
    ),
    ("time, user, item", (r"\d{9,10}(\.\d+)?", r"\d{1,8}", r"\d{1,8}"), ("unixTime", "user", "item")),
    ("user, item, time", (".+", ".+", f"{_NUMBER}|{_DATE}"), ("user", "item", "time")),
    ("user, follows", (".+", ".+"), ("user", "follows")),
)


def _without_names(fields: list[str]) -> tuple[str, tuple[str, ...]] | None:
    for name, patterns, columns in _KNOWN:
        if len(fields) == len(patterns) and all(
            re.fullmatch(pattern, field) for pattern, field in zip(patterns, fields, strict=True)
        ):
            return name, columns
    return None


def first_lines(path: Path, n: int = _SAMPLE_LINES) -> list[str]:
    """Return up to ``n`` lines of a text file, compressed or not, without those that are blank.

    Raises:
        ConfigError: no file, a pipe or folder, an empty file, or no UTF-8 text.
    """
    regular(path)
    opened = _OPEN.get(path.suffix, open)
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            lines = [line.rstrip("\r\n") for _, line in zip(range(n), file, strict=False)]
    except UnicodeDecodeError:
        raise ConfigError("this is no UTF-8 text: save it as UTF-8", file=str(path)) from None
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise ConfigError(f"cannot be read: {error}", file=str(path)) from None
    filled = [line for line in lines if line.strip()]
    if not filled:
        raise ConfigError("this file is empty: lines with user, item and time are needed", file=str(path))
    return filled


def regular(path: Path) -> None:
    """Refuse what is no file.

    Raises:
        ConfigError: nothing has that name, or a folder, pipe or device.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        raise ConfigError("no such file", file=str(path)) from None
    if not stat.S_ISREG(mode):
        what = "this is a folder, but no store of events" if stat.S_ISDIR(mode) else "not a file"
        raise ConfigError(f"{what}: a file of events is needed", file=str(path))
