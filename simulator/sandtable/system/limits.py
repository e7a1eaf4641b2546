"""How much memory this process may take, what the machine has or the least limit above it; how large its caches are."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from sandtable import units

# in control groups of version 1, "no limit" is a number near 2^63
_UNLIMITED = 1 << 60


def memory_bytes(root: Path = Path("/")) -> int:
    """Return the memory that this process may use, in bytes.

    The least of the machine's, of every control group around the process (versions 1 and 2, nested ones too), and of
    the limit of address space (``ulimit -v``), of which what libraries have mapped and not filled is spent already.
    ``root`` is where ``proc`` and ``sys`` lie.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *group_limits(root), *_address_space(root)])


def _address_space(root: Path) -> Iterator[int]:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        mapped, filled = (status_bytes(name, root) or 0 for name in ("VmSize", "VmRSS"))
        yield max(0, soft - mapped + filled)


def status_bytes(field: str, root: Path = Path("/")) -> int | None:
    """Return a size that the system states of this process (proc_pid_status(5)), in bytes; None where it does not."""
    found = re.search(rf"^{field}:\s+(\d+) kB", _text(root / "proc/self/status"), re.MULTILINE)
    return None if found is None else int(found[1]) << 10


def group_limits(root: Path = Path("/")) -> list[int]:
    """Return the limits of memory, in bytes, of every control group around this process; those without one aside.

    See cgroups(7): ``/proc/self/cgroup`` names the group in each hierarchy, and a limit of any group above counts too.
    """
    found = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if number == "0" and not controllers:
            found += [_limit(group / "memory.max") for group in _groups(root / "sys/fs/cgroup", name)]
            found += [_limit(group / "memory.max") for group in _groups(root / "sys/fs/cgroup/unified", name)]
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            found += [_limit(group / "memory.limit_in_bytes") for group in _groups(base, name)]
    return [limit for limit in found if limit is not None]


def _groups(base: Path, name: str) -> Iterator[Path]:
    """Yield a group and those around it; inside a container the base itself may be the group."""
    relative = PurePosixPath(name.lstrip("/"))
    for part in (relative, *relative.parents):
        if ".." not in part.parts:
            yield base / part


def _limit(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdecimal() and int(text) < _UNLIMITED else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def last_level_cache_bytes(root: Path = Path("/")) -> int | None:
    """Return the size of the largest cache of the first core, in bytes, where the operating system tells."""
    sizes = (_text(path) for path in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    found = (re.fullmatch(r"(\d+)([KMG]?)", size.strip()) for size in sizes)  # such as 32768K
    shifts = {"": 0, "K": 10, "M": 20, "G": 30}
    return max((int(size[1]) << shifts[size[2]] for size in found if size is not None), default=None)


def n_oom_kills(root: Path = Path("/")) -> int:
    """Return how many processes the system has ended since it started because memory ran out, where it tells."""
    found = re.search(r"^oom_kill (\d+)$", _text(root / "proc/vmstat"), re.MULTILINE)
    return int(found[1]) if found else 0


def out_of_memory(error: BaseException | str = "") -> str:
    """Say in one sentence that memory ran out, what asked for it, and what this process may use."""
    asked = " ".join(str(error).split())
    return (
        f"out of memory{f' ({asked[:160]})' if asked else ''}: this process may use "
        f"{units.format_bytes(memory_bytes())}; take a smaller model or batch, or raise the limit (ulimit -v, control "
        "group)"
    )
