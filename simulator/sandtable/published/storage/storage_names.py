"""From the text that names a storage device in a published table to a device of the library.

Names are parsed by pattern, never listed: a family of a provider, a size, a number of disks; or the words of a
product. A new device file is found by itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from sandtable import units
from sandtable.hardware import Storage, library
from sandtable.published.adapter import Skipped

NO_DEVICE = Skipped("no device file")
NO_SIZE = Skipped("the device file has no such size")
# from this generation of instances on, published iotune figures of sizes with several drives are of all of them
# together; before, they are of one drive (as the source's own tool multiplies them by the number of drives)
WHOLE_SET_GENERATION = 7
# what a volume's provisioned requests allow it to transfer, per request (AWS documentation of io1)
PROVISIONED_BYTES = 256 * 1024

_AWS = re.compile(r"^AWS (?P<family>[a-z]+(?P<generation>\d+)[a-z0-9]*)\.(?P<size>[\w-]+)\b")
_EBS = re.compile(r"^AWS EBS (?P<kind>\w+)\b(?:.*?(?P<iops>\d+) IOPS)?")
_GCP = re.compile(
    r"^GCP (?P<series>[a-z0-9]+)-(?P<type>[a-z]+)-(?P<vcpus>\d+)(?:-(?P<lssd>\w*lssd))?"
    r"(?:.*?with (?P<disks>\d+) local SSD)?"
)
_CAPACITY = re.compile(r"\b(\d+(?:\.\d+)?)\s*([TG])i?B\b", re.IGNORECASE)
_SET = re.compile(r"^(\d+)\s*x\s+", re.IGNORECASE)
_NOISE = frozenset(
    {"ssd", "nvme", "drive", "disk", "unit", "pcie", "m.2", "u.2", "e1.s", "dc", "d3", "d5", "d7", "gen", "raid0"}
)
# words that make another product of the words before them
_MODEL_WORDS = frozenset({"pro", "plus", "evo", "qvo", "max", "ultra", "extreme", "lite", "se", "g2", "g3", "g4"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A device as one row has it; ``drives`` are read together, their rates add up.

    ``share`` is the part of a whole drive that the row's offer holds, 1 for whole drives.
    """

    storage: Storage
    group: str
    drives: int = 1
    share: float = 1.0
    base: Storage | None = None
    variant: str | None = None


def find(device: str, family: str = "", disks: int | None = None) -> Target | Skipped:
    """Return the library's device for the text ``device``, or why there is none."""
    if match := _AWS.match(device):
        return _aws(match["family"], int(match["generation"]), match["size"])
    if match := _EBS.match(device):
        return _ebs(match["kind"], None if match["iops"] is None else float(match["iops"]))
    if match := _GCP.match(device):
        count = disks if match["disks"] is None else int(match["disks"])
        return _gcp(match["series"], match["vcpus"], match["lssd"], count)
    return _drive(device, family, disks)


@lru_cache(maxsize=256)
def _load(name: str) -> Storage | None:
    path = library.device_files("storage").get(name)
    component = None if path is None else library.load_file(path, "storage")
    return component if isinstance(component, Storage) else None


def _aws(family: str, generation: int, size: str) -> Target | Skipped:
    device = _load(f"aws_{family}") or _load(f"aws_{family}_store")
    if device is None:
        return NO_DEVICE
    group = "AWS instance store"
    if size == "ALL":  # the source's name for every size with whole drives, per drive
        return Target(storage=device, group=group, base=device)
    if size not in device.variants:
        return NO_SIZE
    target = offer(device, size, per_drive=generation < WHOLE_SET_GENERATION)
    return replace(target, group=group)


def offer(device: Storage, variant: str, *, per_drive: bool) -> Target:
    """Return what one offer of a device gives: one of its drives, or all together."""
    size = device.variants[variant]
    drives = 1 if per_drive else size.n_drives
    one = device.model_copy(update={"variants": {variant: size.model_copy(update={"n_drives": 1})}})
    share = min(1.0, size.capacity_bytes / device.datasheet.capacity_bytes)
    return Target(
        storage=one.select(variant), group=device.title, drives=drives, share=share, base=device, variant=variant
    )


def _gcp(series: str, vcpus: str, lssd: str | None, disks: int | None) -> Target | Skipped:
    own = _load(f"gcp_{series}")
    device = own or (_load("gcp_local_ssd") if lssd is None else None)
    if device is None:
        return NO_DEVICE
    variant = f"x{disks}" if own is None else f"{vcpus}-{lssd}"
    if variant not in device.variants:
        return NO_SIZE
    return Target(storage=device.select(variant), group="GCP local SSD", base=device, variant=variant)


def _ebs(kind: str, iops: float | None) -> Target | Skipped:
    device = _load(f"aws_ebs_{kind}")
    if device is None:
        return NO_DEVICE
    group = "network volume"
    if iops is None:
        return Target(storage=device, group=group, base=device)
    sheet = device.datasheet
    provisioned = sheet.model_copy(
        update={
            "random_read_per_s": min(iops, sheet.random_read_per_s or iops),
            "sequential_read_bytes_per_s": min(sheet.sequential_read_bytes_per_s, iops * PROVISIONED_BYTES),
        }
    )
    own = device.model_copy(update={"datasheet": provisioned, "variants": {}, "fitted": None})
    variant = f"{iops:.0f}iops"
    storage = device.select(variant) if variant in device.variants else own
    return Target(storage=storage, group=group, base=device)


# --- drives by the words of their name ---------------------------------------------------------------------


def _drive(device: str, family: str, disks: int | None) -> Target | Skipped:
    found = _SET.match(device)
    words = _words(device) | _words(family)
    wanted = _capacity(device) or _capacity(family)
    best: tuple[int, float, str] | None = None
    for name, (required, optional, capacity) in _titles().items():
        rest = words - required - optional
        if not required <= words or rest & _MODEL_WORDS:
            continue
        # the most words first, then the nearest capacity
        distance = 0.0 if wanted is None else abs(capacity / wanted - 1)
        best = min(best or (0, 0.0, "~"), (-len(required | (optional & words)), distance, name))
    if best is None:
        return NO_DEVICE
    storage = _load(best[2])
    assert storage is not None
    drives = int(found[1]) if found else disks or 1
    return Target(storage=storage, group="drive", drives=drives, base=storage)


@lru_cache(maxsize=1)
def _titles() -> dict[str, tuple[frozenset[str], frozenset[str], float]]:
    """Return, for each drive, the words that name it, the words it may also carry (in brackets), its capacity."""
    titles = {}
    for name in library.device_files("storage"):
        device = _load(name)
        if device is None or device.variants or name == library.GENERIC_STORAGE:
            continue
        main, _, aside = device.title.partition("(")
        required = frozenset(_words(main.partition(",")[0]))
        if required:
            titles[name] = (required, frozenset(_words(main) | _words(aside)), device.datasheet.capacity_bytes)
    return titles


def _words(text: str) -> set[str]:
    """Return the words that tell one product from another: lower case, without sizes, numbering and noise."""
    text = re.sub(r"\bunit \d+\b", " ", _CAPACITY.sub(" ", _SET.sub("", text)), flags=re.IGNORECASE)
    return set(re.findall(r"[a-z0-9][a-z0-9.]*", text.lower())) - _NOISE


def _capacity(text: str) -> float | None:
    match = _CAPACITY.search(text)
    return None if match is None else units.parse(f"{match[1]} {match[2].upper()}B", "bytes")
