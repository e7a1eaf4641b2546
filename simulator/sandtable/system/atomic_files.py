"""Files that stand under their name whole or not at all, and what killed writers left of theirs.

A file grows beside its place under a name that nobody else has, locked by whoever writes it. So a part whose lock is
free is a dead writer's, and is removed by the next one who looks.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from sandtable.system import locks

PARTIAL = ".partial"
PREFIX = "sandtable-"
_PART = re.compile(r".+\.[0-9a-f]{8}\.partial")
_FOLDER = re.compile(rf"{PREFIX}(?:cold|output|workers)-\w+")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file beside its final name and rename it, so that no reader ever sees half of it.

    A link stays a link, the mode of a file that was there stays, and what is no file, such as ``/dev/null``, is
    written to as it is.
    """
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep_parts_of(target)
    part, handle = create_part(target)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if target.exists():
                os.fchmod(handle, stat.S_IMODE(target.stat().st_mode))
            os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def create_part(path: Path, flags: int = 0) -> tuple[Path, int]:
    """Create a file of one's own beside ``path`` and return it, open for reading and writing, and locked.

    The mode is what the user's umask makes of it. ``flags`` are more ones for `os.open`.
    """
    while True:
        part = path.with_name(f"{path.name[:200]}.{secrets.token_hex(4)}{PARTIAL}")
        try:
            handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | flags, 0o666)
        except FileExistsError:
            continue
        except OSError:
            part.unlink(missing_ok=True)  # some file systems refuse a flag after they made the file
            raise
        with contextlib.suppress(OSError):  # no locks here: then nobody sweeps either
            if not locks.holds(handle, part):
                os.close(handle)
                continue
        return part, handle


@contextlib.contextmanager
def temporary_folder(parent: Path, kind: str) -> Iterator[Path]:
    """Make a folder of one's own that ends with the block, or is swept up once this process is dead.

    Args:
        parent: Where; what dead processes left there goes first.
        kind: ``cold``, ``output`` or ``workers``, a part of its name.
    """
    sweep(parent)
    path, handle = _create_folder(parent, kind)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def _create_folder(parent: Path, kind: str) -> tuple[Path, int]:
    while True:
        path = parent / f"{PREFIX}{kind}-{secrets.token_hex(4)}"
        path.mkdir(mode=0o700)
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            if not locks.holds(handle, path):
                os.close(handle)
                continue
        return path, handle


def sweep(folder: Path) -> None:
    """Remove what dead processes left in a folder: parts of files, temporary folders, locks. What is in use stays."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in list(entries):
            path = Path(entry.path)
            if _PART.fullmatch(entry.name) or _FOLDER.fullmatch(entry.name) or locks.is_lock(path):
                _remove_unless_held(path)


def sweep_parts_of(path: Path) -> None:
    """Remove what dead writers left of one file; a part that grows stays."""
    for part in path.parent.glob(f"{_escaped(path.name[:200])}.*{PARTIAL}"):
        if _PART.fullmatch(part.name):
            _remove_unless_held(part)


def _escaped(name: str) -> str:
    return re.sub(r"([\[\]*?])", r"[\1]", name)


def _remove_unless_held(path: Path) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not locks.holds(handle, path):
                return
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        finally:
            os.close(handle)
