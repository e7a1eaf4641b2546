"""Locks that die with their process, so that what two processes would spoil together is done by one at a time.

They are flock(2) on a file: the system lets go of it however its holder ends, SIGKILL included, and holds it on while
a child that inherited the file still runs. Nothing is decided by the age of a file or by a number written in it.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sandtable.errors import InUse

SUFFIX = ".lock"
_CONTENT = re.compile(rb"\d+ \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n")
# how long children of a holder that was killed may take to end, before they count as somebody at work
PATIENCE_S = 20.0
POLL_S = 0.05


@contextmanager
def claimed(path: Path, doing: str) -> Iterator[int]:
    """Keep every other process out while inside; yields the lock's descriptor, for children to inherit.

    Args:
        path: What is worked on; the lock is a file beside it, which goes with the claim.
        doing: What two cannot do at once, for the other one's message, such as "trains in this folder".

    Raises:
        InUse: another process is at it: which, and since when.
    """
    lock = path.with_name(path.name + SUFFIX)
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = _claim(lock, path, doing)
    try:
        with suppress(OSError):  # on a full disk the lock holds all the same, without a name
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()} {dt.datetime.now():%Y-%m-%d %H:%M:%S}\n".encode(), 0)
        yield handle
    finally:
        lock.unlink(missing_ok=True)  # before it is let go: who waits for this very file looks again
        os.close(handle)


def _claim(lock: Path, path: Path, doing: str) -> int:
    begin = time.monotonic()
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if holds(handle, lock):
                return handle
        except OSError:  # a file system without locks: better unguarded than unusable
            return handle
        pid, _, since = os.pread(handle, 100, 0).decode(errors="replace").strip().partition(" ")
        os.close(handle)
        waited = time.monotonic() - begin
        if waited > PATIENCE_S or (pid.isdigit() and is_running(int(pid))):
            who = f"process {pid} (since {since})" if pid else "another process"
            raise InUse(f"{who} {doing}: wait until it is done, or end it", file=str(path))
        time.sleep(POLL_S)


def holds(handle: int, path: Path) -> bool:
    """Take the lock of an open file without waiting; False if another has it, or the name is another file's by now.

    Raises:
        OSError: the file system knows no locks.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def is_lock(path: Path) -> bool:
    """Whether a file is a lock that `claimed` made, and no other program's."""
    return path.name.endswith(SUFFIX) and path.is_file() and _CONTENT.fullmatch(path.read_bytes()[:100]) is not None


def is_running(pid: int) -> bool:
    """Whether there is such a process, ended ones that nobody has waited for aside."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True
