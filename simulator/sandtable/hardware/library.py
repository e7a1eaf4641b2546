"""Find and load YAML by name or path: devices, machines, price lists, scenarios.

Errors carry the file and the line.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from ruamel.yaml.comments import CommentedMap

from sandtable import hardware, units
from sandtable.errors import ConfigError, UnknownName, did_you_mean
from sandtable.hardware import Component, Frozen
from sandtable.hardware.lookup import offers
from sandtable.hardware.lookup import overrides as setting
from sandtable.system import atomic_files, checksums
from sandtable.text_files import exists
from sandtable.yaml_files import blame, dump_yaml, line_of, read_key, read_yaml, validate

SEARCH_PATH_VARIABLE = "SANDTABLE_PATH"
THIS_MACHINE = "this_machine"
UNREADABLE = "unreadable"
SPOT = "spot"
# what 'sandtable list' shows names of a kind under
_LISTED = {"machine": "machines", "scenario": "scenarios", "suite": "suites", "prices": "prices", "stack": "stacks"}
# where a device may name other files, by its kind: dotted path -> kind of that file
_PARTS: dict[str, dict[str, str]] = {
    "storage": {"like": "storage"},
    "processor": {"like": "processor"},
    "accelerator": {"like": "accelerator", "memory": "memory", "link": "link", "peer_link": "link"},
    "machine": {
        "processor": "processor",
        "memory": "memory",
        "storage": "storage",
        "stack": "stack",
        "accelerator.device": "accelerator",
        "accelerator.link": "link",
        "accelerator.peer_link": "link",
        "network": "link",
        "process_link": "link",
    },
}
# what a variant of an accelerator does not take from the one that it is a variant of
_OF_ITS_OWN = ("published_as", "notes")
# the device whose shape stands in for what a storage data sheet leaves open
GENERIC_STORAGE = "generic_flash"
# the software assumed where a machine names none
GENERIC_STACK = "generic"

# the files that are being loaded, each named by the one before
_LOADING: ContextVar[tuple[Path, ...]] = ContextVar("_LOADING", default=())

C = TypeVar("C", bound=Component)
M = TypeVar("M", bound=BaseModel)


# --- finding -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def root() -> Path:
    """Return the folder that holds ``devices/`` and ``scenarios/``: the checkout, or the installed library."""
    checkout = Path(__file__).resolve().parents[3]
    if (checkout / "pyproject.toml").is_file() and (checkout / "devices").is_dir():
        return checkout
    return Path(__file__).resolve().parents[2] / "sandtable_library"


def device_folders() -> list[Path]:
    """Return the device folders in order of precedence: ``SANDTABLE_PATH``, then the shipped library."""
    extra = [Path(p) for p in os.environ.get(SEARCH_PATH_VARIABLE, "").split(os.pathsep) if p]
    return [*extra, root() / "devices"]


def scenario_folders() -> list[Path]:
    """Return the scenario folders in order of precedence."""
    extra = [Path(p) for p in os.environ.get(SEARCH_PATH_VARIABLE, "").split(os.pathsep) if p]
    shipped = root() / "workloads" / "scenarios"
    return [*extra, shipped if shipped.is_dir() else root() / "scenarios"]


def device_files(kind: str | None = None) -> dict[str, Path]:
    """Return name -> path of the library's device files, of one kind or of all."""
    folders = {hardware.FOLDERS[kind]} if kind is not None else set(hardware.FOLDERS.values())
    found: dict[str, Path] = {}
    for base in device_folders():
        for folder in sorted(folders):
            for path in sorted((base / folder).glob("*.yaml")):
                found.setdefault(path.stem, path)
        for path in sorted(base.glob("*.yaml")) if base != root() / "devices" else ():
            # a folder of somebody's own may hold scenarios beside devices
            if _kind_of(path) in (*((kind,) if kind is not None else hardware.KINDS), UNREADABLE):
                found.setdefault(path.stem, path)
    if kind in (None, "machine") and Path(f"{THIS_MACHINE}.yaml").is_file():
        found.setdefault(THIS_MACHINE, Path(f"{THIS_MACHINE}.yaml"))
    return found


def _kind_of(path: Path) -> Any:
    """Return what a file says it is; one that cannot be read may be anything, until it is needed."""
    try:
        return read_key(path, "kind")
    except ConfigError:
        return UNREADABLE


def scenario_files() -> dict[str, Path]:
    """Return name -> path of the ready-made scenarios."""
    found: dict[str, Path] = {}
    for folder in scenario_folders():
        for path in sorted(folder.rglob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def find_file(kind: str, name: str, files: Mapping[str, Path], beside: Path | None = None) -> Path:
    """Resolve ``name`` as a path if it looks like one, else as a name among ``files``.

    A path leads from the folder of ``beside``, the file that names it, else from the current one. A name that is not
    among ``files`` may be that of a file ``NAME.yaml`` in one of the two.

    Raises:
        UnknownName: with the nearest names.
        ConfigError: no such file.
    """
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        for path in _places(name, beside):
            if exists(path):
                return path
        where = "" if beside is None else f", neither beside {beside} nor in the current folder"
        raise ConfigError(f"no such file{where}", file=name)
    if name not in files:
        for path in _places(f"{name}.yaml", beside):
            if exists(path) and path.is_file():
                return path
        if name == THIS_MACHINE:
            raise ConfigError(
                f"there is no {THIS_MACHINE}.yaml here yet: run 'sandtable calibrate --quick' first, "
                "or choose a machine with --machine (see 'sandtable list machines')"
            )
        raise UnknownName(kind, name, files, _LISTED.get(kind, "devices" if kind in hardware.KINDS else None))
    return files[name]


def _places(name: str, beside: Path | None) -> Iterator[Path]:
    """Yield where a relative path may lead, the folder of the file that names it first."""
    if beside is not None:
        yield beside.parent / name
    yield Path(name)


def load_component(kind: str, name: str, beside: Path | None = None) -> Component:
    """Load the device ``name`` (a library name or a path, ``@variant`` appended), which must be of ``kind``.

    ``beside`` is the file that names it; see `find_file`.
    """
    base, _, variant = name.partition("@")
    component = load_file(find_file(kind, base, device_files(kind), beside), kind)
    if not variant:
        return component
    variants = component.variants if isinstance(component, hardware.Storage) else {}
    if variant not in variants:
        raise UnknownName(f"variant of {base}", variant, variants)
    assert isinstance(component, hardware.Storage)
    return component.select(variant)


def generic_storage() -> hardware.Storage:
    """Return the drive that stands in where nothing is known of one; its file is read once."""
    return _generic_storage(tuple(device_folders()))


@lru_cache(maxsize=4)
def _generic_storage(_: tuple[Path, ...]) -> hardware.Storage:
    generic = load_component("storage", GENERIC_STORAGE)
    assert isinstance(generic, hardware.Storage)
    return generic


def accelerator_called(text: str) -> hardware.Accelerator | None:
    """Return the accelerator that a published file or a driver calls ``text``, None if no device file has that name."""
    name = _published_names(tuple(device_files("accelerator").items())).get(hardware.plain_name(text))
    return None if name is None else load_accelerator(name)


@lru_cache(maxsize=4)
def _published_names(files: tuple[tuple[str, Path], ...]) -> dict[str, str]:
    """Return published name -> name of the device file, read from one key of each: whole files would take seconds."""
    found: dict[str, str] = {}
    for device, path in files:
        for text in read_key(path, "published_as") or ():
            found.setdefault(hardware.plain_name(str(text)), device)
    return found


def load_file(path: Path, kind: str | None = None, overrides: Mapping[str, Any] | None = None) -> Component:
    """Load one device file, resolving the names of other devices in it; see `load_machine` for ``overrides``.

    Raises:
        ConfigError: with file and line; also when the file is of another kind than ``kind``.
    """
    above, place = _LOADING.get(), path.absolute()
    if place in above:
        raise ConfigError(f"it takes its parts from itself, by way of {above[-1].name}", file=str(path))
    token = _LOADING.set((*above, place))
    try:
        return load_data(read_yaml(path), path, kind, overrides)
    finally:
        _LOADING.reset(token)


def load_data(
    data: CommentedMap, path: Path, kind: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Component:
    """Load a device from what was read from the file ``path``, see `load_file`; ``data`` is changed."""
    actual = data.get("kind")
    if not isinstance(actual, str) or actual not in hardware.KINDS:
        line = line_of(data, ["kind"])
        message = "'kind' is missing" if actual is None else f"unknown kind {actual!r}"
        raise ConfigError(f"{message}{did_you_mean(str(actual), hardware.KINDS)}", file=str(path), line=line)
    if kind is not None and actual != kind:
        raise ConfigError(
            f"this is a {actual}, but a {kind} is needed", file=str(path), line=line_of(data, ["kind"])
        )
    settings = _put_settings(data, str(actual), overrides or {})
    try:
        return _loaded(data, str(actual), path)
    except ConfigError as error:
        raise blame(error, settings) from None


def _put_settings(data: CommentedMap, kind: str, overrides: Mapping[str, Any]) -> dict[str, str]:
    """Put a user's values into a device's data; return the user's path of each by its full one."""
    if kind == "machine" and overrides and not _is_fitted(data.get("processor")):
        data.setdefault("stack", GENERIC_STACK)
    settings: dict[str, str] = {}
    for dotted, value in overrides.items():
        # a path in a setting leads from the current folder
        is_path = isinstance(value, str) and os.sep in value and Path(value).is_file()
        found = str(Path(value).absolute()) if is_path else value
        settings[setting.put(data, kind, dotted, found, _PARTS, _opened)] = f"{kind}.{dotted}"
    return settings


def _opened(kind: str, name: str) -> MutableMapping[str, Any]:
    """Return what the file of a device holds, of a variant what it comes to; the caller may change it."""
    base, _, variant = name.partition("@")
    path = find_file(kind, base, device_files(kind))
    if variant:
        return to_yaml_data(load_component(kind, name))
    data = read_yaml(path)
    if data.get("variant_of") is not None:
        _complete_variant(data, kind, path, None)
        del data["variant_of"]
    return data


def _loaded(data: CommentedMap, kind: str, path: Path) -> Component:
    """Return the device in ``data``, with the names of others in it resolved."""
    if path.stem != data.get("name") and path.parent.name in hardware.FOLDERS.values():
        line = line_of(data, ["name"])
        raise ConfigError(f"name must equal the file's name: write 'name: {path.stem}'", file=str(path), line=line)
    _resolve(data, kind, path, data, [])
    component = validate(hardware.KINDS[kind], data, str(path))
    return component.wired() if isinstance(component, hardware.Machine) else component


def _is_fitted(part: Any) -> bool:
    """Whether a part that stands in the machine's own file was calibrated: then its software is in the laws."""
    return isinstance(part, Mapping) and part.get("fitted") is not None


def _resolve(part: Any, kind: str, path: Path, data: CommentedMap, above: list[str]) -> None:
    """Replace each name of another device in ``part``, which stands in ``data`` below ``above``, by that device."""
    if kind == "storage" and "fitted" not in part and part.get("name") != GENERIC_STORAGE:
        part.setdefault("like", GENERIC_STORAGE)
    if kind == "machine":
        if not _is_fitted(part.get("processor")):
            part.setdefault("stack", GENERIC_STACK)
        _check_accelerator(part, path)
    if kind in ("accelerator", "family") and part.get("variant_of") is not None:
        _complete_variant(part, kind, path, line_of(data, [*above, "variant_of"]))
    for dotted, kind_of_part in _PARTS.get(kind, {}).items():
        *parents, key = dotted.split(".")
        node: Any = part
        for parent in parents:
            node = node.get(parent) if isinstance(node, Mapping) else None
        if not isinstance(node, MutableMapping):
            continue
        found, where = node.get(key), [*above, *parents, key]
        if isinstance(found, str):
            try:
                node[key] = load_component(kind_of_part, str(found), path)
            except UnknownName as error:
                at = ".".join(where)
                raise ConfigError(str(error), file=str(path), line=line_of(data, where), path=at) from None
        elif isinstance(found, Mapping):
            _resolve(found, kind_of_part, path, data, where)


def _check_accelerator(machine: Any, path: Path) -> None:
    """Refuse a machine that names processor and memory of its accelerator one by one, and say what to write."""
    section = machine.get("accelerator")
    for key in ("processor", "memory"):
        if isinstance(section, Mapping) and key in section:
            processor = section.get("processor")
            known = isinstance(processor, str) and processor in device_files("accelerator")
            device = processor if known else "<name of a file in devices/accelerators>"
            n = f", n: {section['n']}" if "n" in section else ""
            raise ConfigError(
                f"accelerator.{key}: processor and memory of an accelerator stand in one file: write "
                f"'accelerator: {{device: {device}{n}}}' ('sandtable new device --kind accelerator' makes such a file, "
                "'sandtable calibrate --only gpu' measures this machine's)",
                file=str(path),
                line=line_of(machine, ["accelerator", key]),
            )


def _complete_variant(variant: Any, kind: str, path: Path, line: int | None) -> None:
    """Put in what a file leaves out because it is as in the one that it is a variant of."""
    name = str(variant["variant_of"])
    try:
        base = read_yaml(find_file(kind, name, device_files(kind), path))
    except UnknownName as error:
        raise ConfigError(str(error), file=str(path), line=line) from None
    if "variant_of" in base:
        raise ConfigError(
            f"variant_of: {name} is a variant itself: write {base['variant_of']}", file=str(path), line=line
        )
    for key in base.keys() - variant.keys() - set(_OF_ITS_OWN):
        variant[key] = base[key]
    for key in ("datasheet", "fitted", "laws", "sources"):
        _fill(variant.get(key), base.get(key))


def _fill(own: Any, base: Any) -> None:
    """Put into nested mappings what only ``base`` has."""
    if own is base or not isinstance(own, MutableMapping) or not isinstance(base, Mapping):
        return
    for key, value in base.items():
        if key in own:
            _fill(own[key], value)
        else:
            own[key] = value


@lru_cache(maxsize=16)
def family(name: str) -> hardware.Family:
    """Return what laws take as given on devices of a family: cpu, gpu, soc_gpu, or link."""
    found = load_component("family", name)
    assert isinstance(found, hardware.Family)
    return found


def load_accelerator(name: str) -> hardware.Accelerator:
    """Load an accelerator by library name or path."""
    found = load_component("accelerator", name)
    assert isinstance(found, hardware.Accelerator)
    return found


def load_machine(
    name: str, overrides: Mapping[str, Any] | None = None, beside: Path | None = None
) -> hardware.Machine:
    """Load a machine by library name or path; ``this_machine`` is the calibrated one in the current folder.

    ``overrides`` replaces values by dotted path before validation: ``{"storage": "samsung_990_pro"}`` puts in
    another drive, ``{"price.hour": "2 USD/h"}`` another price, ``{"memory.capacity": "8 GiB"}`` another size of the
    memory that the machine names. ``beside`` is the file that names the machine; see `find_file`.

    An instance of a price list is a machine as well, named by provider and instance: ``verda_1a100_22v``. ``@spot``
    behind a name takes the lowest spot price in place of the machine's own.
    """
    base, _, kind = name.partition("@")
    if kind not in ("", SPOT):
        raise UnknownName(f"price of {base}", kind, [SPOT])
    files = device_files("machine")
    offer = None if base in files else _offer(base)
    if offer is None:
        machine = load_file(find_file("machine", base, files, beside), "machine", overrides or {})
    else:
        machine = offered(offer, overrides)
    assert isinstance(machine, hardware.Machine)
    if kind:
        machine = at_spot(machine)
        if machine.price is None:
            raise ConfigError(f"the price lists have no spot price of {base}")
        machine = machine.model_copy(update={"name": name})
    return machine.model_copy(update={"stack": None if machine.stack is None else _with_pooled(machine.stack)})


def at_spot(machine: hardware.Machine) -> hardware.Machine:
    """Return the machine at the lowest spot price of its instance over regions; without a price if there is none."""
    price = machine.price
    rows = [] if price is None or price.provider is None else price_rows(price.provider, price.instance)
    spot = [(row.spot_usd_per_h, row.as_of, row.region) for row in rows if row.spot_usd_per_h is not None]
    if price is None or not spot:
        return machine.model_copy(update={"price": None})
    usd_per_h, as_of, region = min(spot, key=lambda each: each[:2])
    update = {"usd_per_h": usd_per_h, "as_of": as_of, "region": region, "kind": SPOT}
    return machine.model_copy(update={"price": price.model_copy(update=update)})


def price_lists() -> list[hardware.PriceList]:
    """Return the price lists of the library, sorted by name."""
    lists = [load_file(path, "prices") for _, path in sorted(device_files("prices").items())]
    return [found for found in lists if isinstance(found, hardware.PriceList)]


def is_offered(name: str) -> bool:
    """Whether a price list has an instance whose machine has that name."""
    return _offer(name) is not None


def _offer(name: str) -> offers.Offer | None:
    """Return the offer of a price list whose machine has that name, on demand rather than spot."""
    for kind in offers.KINDS:
        for offer in offers.offers_of(price_lists(), kind):
            if offer.machine == name and offer.device is not None:
                return offer
    return None


def offered(offer: offers.Offer, overrides: Mapping[str, Any] | None = None) -> hardware.Machine:
    """Return the machine of an offer, changed as in `load_machine`."""
    assert offer.device is not None
    data = CommentedMap(offers.machine_data(offer, load_accelerator(offer.device)))
    size = offer.row.memory_bytes
    stated = {} if size is None else {"memory.datasheet.capacity": units.write(size, "bytes")}
    machine = load_data(data, Path(f"{offer.machine}.yaml"), "machine", stated | dict(overrides or {}))
    assert isinstance(machine, hardware.Machine)
    return machine


def price_rows(provider: str, instance: str | None) -> tuple[hardware.PriceRow, ...]:
    """Return the rows of a provider's price list about one kind of machine; none where there is no such list."""
    files = device_files("prices")
    if provider not in files:
        return ()
    prices = load_file(files[provider], "prices")
    assert isinstance(prices, hardware.PriceList)
    return tuple(row for row in prices.price if row.instance == instance)


@lru_cache(maxsize=16)
def load_stack(name: str) -> hardware.Stack:
    """Load software by library name or path, with the constants of what it names."""
    stack = load_component("stack", name)
    assert isinstance(stack, hardware.Stack)
    return _with_pooled(stack)


def _with_pooled(stack: hardware.Stack) -> hardware.Stack:
    """Return a stack with the constants that the files of the software it names were given; its own stay."""
    tables = {} if stack.fitted is None else dict(stack.fitted.operators)
    files = device_files("stack")
    for software in set(stack.software.values()) & files.keys() - {stack.name}:
        other = load_file(files[software], "stack")
        assert isinstance(other, hardware.Stack)
        for operator, fits in ({} if other.fitted is None else other.fitted.operators).items():
            tables[operator] = fits | tables.get(operator, {})
    if not tables:
        return stack
    pooled = hardware.StackFit(operators=tables)
    sources = {"fitted": "constants of the software that the stack names, from its file"} | stack.sources
    return stack.model_copy(update={"fitted": pooled, "sources": sources})


def digest(model: BaseModel) -> str:
    """Return a short hash of a model's content, to tell whether two results used the same device."""
    return hashlib.sha256(model.model_dump_json().encode()).hexdigest()[:12]


# --- writing -----------------------------------------------------------------------------------------------


def to_yaml_data(model: Frozen) -> dict[str, Any]:
    """Return a model as the mapping its YAML file holds: aliases as keys, quantities as strings with units.

    Estimates whose three values coincide are written as one scalar; fields at their default are left out.
    """
    data: dict[str, Any] = {}
    for name, key, value in model.entries():
        field = type(model).model_fields.get(name)
        required = field is None or field.is_required()
        is_default = not required and value == field.get_default(call_default_factory=True)  # type: ignore[union-attr]
        if value is None or (is_default and name != "schema_version"):
            continue
        # a device's stand-in is a reference, not a part
        data[key] = value.name if name == "like" else _yaml_value(value, units.quantity_of(name))
    return data


def _yaml_value(value: Any, quantity: str | None) -> Any:
    if isinstance(value, hardware.Estimate):
        parts = {key: _yaml_value(getattr(value, key), quantity) for key in ("value", "low", "high")}
        return parts["value"] if value.low == value.high else parts
    if isinstance(value, Frozen):
        return to_yaml_data(value)
    if isinstance(value, dict):
        return {str(key): _yaml_value(item, quantity) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_yaml_value(item, quantity) for item in value]
    if isinstance(value, float) and quantity is not None:
        return units.write(value, quantity)
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value


def save_component(component: Component, path: Path) -> None:
    """Write a device file atomically, in the form that `load_file` reads."""
    atomic_files.write_atomically(path, dump_yaml(to_yaml_data(component)))


def save_measured(machine: hardware.Machine, path: Path) -> None:
    """Write a machine file whose numbers were measured: with a digest, which `load_file` holds them to."""
    atomic_files.write_atomically(path, checksums.sealed_yaml(dump_yaml(to_yaml_data(machine))))
