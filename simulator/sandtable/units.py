"""Parse and format quantities. The only module that knows prefixes.

At every edge (YAML, command line, JSON text) a quantity is a string with a unit: ``"16 KiB"``, ``"118 us"``,
``"3.35 TB/s"``, ``"989 TFLOP/s"``, ``"2.49 USD/h"``. Inside, it is a float in SI base units (bytes, seconds,
bytes per second, FLOP per second, watts, joules, USD, USD per hour) and its name carries the unit as a suffix.

Binary (KiB, MiB, GiB, TiB) and decimal (kB, MB, GB, TB) prefixes are both read. Bits are never taken for bytes:
``"25 Gbit/s"`` is a rate of 3.125e9 bytes/s, ``"80Gb"`` is refused.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Annotated, Any, Final, TypeVar

from pydantic import BeforeValidator, ValidationInfo

_SI: Final = {"": 0, "k": 3, "K": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_SMALL: Final = {"": 0, "m": -3, "u": -6, "\u00b5": -6, "\u03bc": -6, "n": -9, "p": -12}
_BINARY: Final = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5}


def _decimal(base: str, prefixes: dict[str, int], scale: str = "1") -> dict[str, Decimal]:
    return {p + base: Decimal(scale).scaleb(e) for p, e in prefixes.items()}


_BYTE_UNITS: Final = _decimal("B", _SI) | {p + "B": Decimal(1024) ** e for p, e in _BINARY.items()}
_BIT_UNITS: Final = _decimal("bit", _SI, "0.125")
_TIME_UNITS: Final = _decimal("s", _SMALL) | {
    "min": Decimal(60),
    "h": Decimal(3600),
    "day": Decimal(86400),
}

# unit tables by quantity; the first entry of `_EXAMPLE` is what an error message proposes
_TABLES: Final[dict[str, dict[str, Decimal]]] = {
    "bytes": _BYTE_UNITS,
    "bytes/s": {f"{u}/s": v for u, v in (_BYTE_UNITS | _BIT_UNITS).items()},
    "s": _TIME_UNITS,
    "FLOP": _decimal("FLOP", _SI) | _decimal("FLOPs", _SI),
    "FLOP/s": _decimal("FLOP/s", _SI) | _decimal("OP/s", _SI),
    "1/s": _decimal("/s", _SI) | {f"{p}IOPS": Decimal(1).scaleb(e) for p, e in _SI.items()},
    "Hz": _decimal("Hz", _SI),
    "W": _decimal("W", _SI | {"m": -3}),
    "J": _decimal("J", _SI | {"m": -3, "p": -12}) | {"Wh": Decimal(3600), "kWh": Decimal(3_600_000)},
    "USD": {"USD": Decimal(1)},
    "USD/h": {"USD/h": Decimal(1), "USD/month": Decimal(1) / Decimal(730)},
    "frac": {"%": Decimal("0.01"), "": Decimal(1)},
}
_EXAMPLE: Final = {
    "bytes": "16 KiB",
    "bytes/s": "3.35 TB/s",
    "s": "118 us",
    "FLOP": "2 GFLOP",
    "FLOP/s": "989 TFLOP/s",
    "1/s": "150 kIOPS",
    "Hz": "2.6 GHz",
    "W": "700 W",
    "J": "3 J",
    "USD": "1600 USD",
    "USD/h": "2.49 USD/h",
    "frac": "3 %",
}
_NAMES: Final = {
    "bytes": "a size",
    "bytes/s": "a transfer rate",
    "s": "a time",
    "FLOP": "an amount of arithmetic",
    "FLOP/s": "an arithmetic rate",
    "1/s": "a rate of operations",
    "Hz": "a frequency",
    "W": "a power",
    "J": "an energy",
    "USD": "a price",
    "USD/h": "a price per hour",
    "frac": "a fraction",
}
_NUMBER = re.compile(r"^\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*?)\s*$")


def parse(text: object, quantity: str) -> float:
    """Parse ``text`` as ``quantity`` (a key such as "bytes" or "FLOP/s") into SI base units.

    Raises:
        ValueError: a bare number, an unknown unit, the unit of another quantity, or a bit/byte mix-up; the
            sentence says what to write instead.
    """
    table = _TABLES[quantity]
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise ValueError(f"{_NAMES[quantity]} is needed, such as '{_EXAMPLE[quantity]}', not {shown(text)}")
    if isinstance(text, int | float):
        value = _scaled(str(text), str(text), Decimal(1))
        if quantity == "frac" or text == 0:
            return value
        raise ValueError(_bare(value, quantity))
    match = _NUMBER.match(text)
    if match is None:
        raise ValueError(f"{shown(text)} is not {_NAMES[quantity]}: write it like '{_EXAMPLE[quantity]}'")
    number, unit = match.groups()
    if unit not in table:
        raise ValueError(_wrong_unit(text, number, unit, quantity))
    return _scaled(text, number, table[unit])


def _scaled(text: str, number: str, unit: Decimal) -> float:
    """Return a number times a unit, both exact until the last; ``text`` is what people wrote."""
    try:
        value = float(Decimal(number.replace("_", "")) * unit)
    except (ArithmeticError, ValueError):  # an exponent beyond that of decimals
        value = math.inf
    return in_range(value, text)


# beyond what any machine has of anything: results stay finite if what goes in lies between
LARGEST: Final = 1e60
SMALLEST: Final = 1e-60
Number = TypeVar("Number", int, float)


def in_range(value: Number, text: object = None) -> Number:
    """Return a number that is zero or of a magnitude that something can have; ``text`` is what people wrote.

    Raises:
        ValueError: not finite, or beyond anything.
    """
    if value and not SMALLEST <= abs(value) <= LARGEST:
        said = shown(f"{value:.3g}" if text is None else text)
        infinite = isinstance(value, float) and not math.isfinite(value)  # whole numbers may be too long for floats
        finite = "is not a finite number" if infinite else "is beyond anything there is"
        raise ValueError(f"{said} {finite}")
    return value


def _bare(value: float, quantity: str) -> str:
    """Say that a number lacks its unit, with the same value written with one."""
    text = write(value, quantity)
    text = text.replace("/s", "IOPS") if quantity == "1/s" else text
    example = text if parse(text, quantity) == value else _EXAMPLE[quantity]
    return f"a unit is required: write it like '{example}', not as a bare number"


def shown(text: object, most: int = 60) -> str:
    """Return what people wrote as a message quotes it: with quotes and escapes, cut where it is long."""
    quoted = repr(text)
    return quoted if len(quoted) <= most else f"{quoted[:most]}…"


_COUNTS: Final = {"": 0, "k": 3, "K": 3, "M": 6, "G": 9, "B": 9, "T": 12}


def parse_count(text: str) -> float:
    """Parse a finite number of things, such as ``"10e9"``, ``"10B"`` (billions), ``"10G"`` or ``"1.5T"``.

    Raises:
        ValueError: anything else, with how to write it.
    """
    match = _NUMBER.match(text)
    if match is None or match.group(2) not in _COUNTS:
        raise ValueError(f"{shown(text)} is not a number: write it like '10e9' or '10B'")
    return _scaled(text, match.group(1), Decimal(1).scaleb(_COUNTS[match.group(2)]))


def _count(value: Any) -> Any:
    return parse_count(value) if isinstance(value, str) else value


def format_count(value: float) -> str:
    """Format a number of things with the suffix that `parse_count` reads: 6738415616 -> "6.74B"."""
    scale, suffix = next(
        ((10.0**e, s) for s, e in (("T", 12), ("B", 9), ("M", 6), ("k", 3)) if value >= 10.0**e), (1.0, "")
    )
    return f"{value / scale:.3g}{suffix}"


def _wrong_unit(text: str, number: str, unit: str, quantity: str) -> str:
    example = _EXAMPLE[quantity]
    if not unit:
        return _bare(_scaled(text, number, Decimal(1)), quantity)
    if quantity in ("bytes", "bytes/s") and re.fullmatch(r"[kKMGT]?i?b(ps|/s)?", unit):
        rate = "/s" if quantity == "bytes/s" else ""
        prefix = unit[0] if unit[0] != "b" else ""
        other = f" or '{number} {prefix}bit/s' for bits" if rate else ""
        return f"{shown(text)} mixes up bits and bytes: write '{number} {prefix}B{rate}' for bytes{other}"
    for other_quantity, other_table in _TABLES.items():
        if unit in other_table:
            return f"{shown(text)} is {_NAMES[other_quantity]}, but {_NAMES[quantity]} is needed: '{example}'"
    same = {value: u for u, value in _TABLES[quantity].items() if u.lower() == unit.lower()}
    # of two units that differ in case alone, as mW and MW, neither is more likely
    hint = (
        f"did you mean '{number} {next(iter(same.values()))}'?" if len(same) == 1 else f"write it like '{example}'"
    )
    return f"unknown unit {shown(unit)} in {shown(text)}: {hint}"


# validation context of input from outside, where a bare number is an error; inside, floats are SI already
AT_EDGE: Final = {"edge": True}


def _validator(quantity: str) -> BeforeValidator:
    def check(value: Any, info: ValidationInfo) -> float:
        if isinstance(value, float | int) and not isinstance(value, bool) and info.context != AT_EDGE:
            return float(value)
        return parse(value, quantity)

    return BeforeValidator(check)


# Annotated pydantic types: strings with units outside, SI floats inside.
Bytes = Annotated[float, _validator("bytes")]
BytesPerSecond = Annotated[float, _validator("bytes/s")]
Seconds = Annotated[float, _validator("s")]
Flops = Annotated[float, _validator("FLOP")]
FlopsPerSecond = Annotated[float, _validator("FLOP/s")]
PerSecond = Annotated[float, _validator("1/s")]
Hertz = Annotated[float, _validator("Hz")]
Watts = Annotated[float, _validator("W")]
Joules = Annotated[float, _validator("J")]
Usd = Annotated[float, _validator("USD")]
UsdPerHour = Annotated[float, _validator("USD/h")]
Fraction = Annotated[float, _validator("frac")]
# a number of things: "20B" outside, as on the command line, a float inside
Count = Annotated[float, BeforeValidator(_count)]

# suffix of a name -> quantity, longest first: `read_bytes_per_s` is a rate, not a time
SUFFIXES: Final = (
    ("_bytes_per_s", "bytes/s"),
    ("_flops_per_s", "FLOP/s"),
    ("_usd_per_h", "USD/h"),
    ("_per_s", "1/s"),
    ("_bytes", "bytes"),
    ("_flops", "FLOP"),
    ("_frac", "frac"),
    ("_usd", "USD"),
    ("_hz", "Hz"),
    ("_s", "s"),
    ("_w", "W"),
    ("_j", "J"),
)


def name_of(quantity: str) -> str:
    """Return what a quantity is called: ``a size``."""
    return _NAMES[quantity]


def example_of(quantity: str) -> str:
    """Return an example of a quantity as people write it: ``16 KiB``."""
    return _EXAMPLE[quantity]


def quantity_of(name: str) -> str | None:
    """Return the quantity that the suffix of ``name`` states (``latency_s`` -> "s"), or None."""
    base = "_" + name.split(".")[0]
    return next((quantity for suffix, quantity in SUFFIXES if base.endswith(suffix)), None)


def suffix_of(value: object) -> str:
    """Return the suffix for a name of what ``value`` states: "3 us" -> "_s", "83 %" -> "_frac"; none for a number.

    Raises:
        ValueError: text without a known unit.
    """
    if not isinstance(value, str):
        return ""
    match = _NUMBER.match(value)
    unit = "" if match is None else match.group(2)
    for suffix, quantity in SUFFIXES:
        if unit and unit in _TABLES[quantity]:
            return suffix
    raise ValueError(
        f"{shown(value)} has no unit that is known: write it like '118 us', or a bare number without one"
    )


def strip_suffix(name: str) -> str:
    """Return ``name`` without its unit suffix; the YAML key of a field, as its value carries the unit."""
    for suffix, _ in SUFFIXES:
        if name.endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


# metrics whose unit their name's last suffix does not tell
_SPELLED_UNITS = {
    "usd_per_mtok": "USD/Mtok",
    "loss_per_usd": "1/USD",
    "tokens_per_usd": "tokens/USD",
    "tokens_per_s_per_device": "tokens/s",
}


def unit_of(metric: str) -> str:
    """Return the unit printed for a metric: ``latency_s.p50`` -> "s", ``tokens_per_s`` -> "tokens/s"."""
    base = metric.split(".")[0]
    if base in _SPELLED_UNITS:
        return _SPELLED_UNITS[base]
    if base.startswith("usd_per_"):
        return "USD/" + base.removeprefix("usd_per_").replace("_", " ")
    quantity = quantity_of(base)
    if quantity == "1/s":
        return base.removesuffix("_per_s") + "/s"
    if quantity == "bytes" or base.startswith("bytes_"):
        return "bytes"
    return {"frac": "1", None: "1"}.get(quantity, str(quantity))


def format_bytes(value: float) -> str:
    """Format a size with a binary prefix: 16384 -> "16 KiB"."""
    return _format_scaled(
        value, [(1024.0**e, p + "B") for p, e in sorted(_BINARY.items(), key=lambda i: -i[1])], "B"
    )


def format_si(value: float, unit: str) -> str:
    """Format with a decimal prefix and three significant digits: (3.35e12, "B/s") -> "3.35 TB/s"."""
    steps = [(10.0**e, p + unit) for p, e in (("P", 15), ("T", 12), ("G", 9), ("M", 6), ("k", 3))]
    return _format_scaled(value, steps, unit)


def format_seconds(value: float) -> str:
    """Format a time with three significant digits: 0.000118 -> "118 us"."""
    magnitude = abs(value)
    if magnitude >= 120:
        return f"{value / 60:.3g} min" if magnitude < 7200 else f"{_three(value / 3600)} h"
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")):
        if magnitude >= scale * 0.9995 or unit == "ns":
            return f"{_three(value / scale)} {unit}"
    return f"{value:g} s"


def _three(value: float) -> str:
    magnitude = abs(value)
    if magnitude >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}" if magnitude < 100 else f"{value:.0f}"


def _format_scaled(value: float, steps: list[tuple[float, str]], unit: str) -> str:
    for scale, name in steps:
        if abs(value) >= scale * 0.9995:
            return f"{_three(value / scale)} {name}"
    return f"{_three(value)} {unit}"


def format_quantity(value: float, unit: str) -> str:
    """Format a value of a known unit ("s", "bytes", "bytes/s", "W", "USD", …) for people."""
    if unit == "s":
        return format_seconds(value)
    if unit == "bytes":
        return format_bytes(value)
    if unit == "bytes/s":
        return format_si(value, "B/s")
    if unit == "frac":
        return f"{100 * value:.3g} %"
    if unit.startswith("USD"):
        return f"{value:.4g} {unit}" if abs(value) < 10_000 else f"{_three(value)} {unit}"
    if unit in ("W", "J", "Hz", "FLOP/s", "FLOP"):
        return format_si(value, unit)
    return f"{_three(value)}" + ("" if unit in ("1", "") else f" {unit}")


def write(value: float, unit: str) -> str:
    """Write a value for a YAML file, with a readable prefix: what a person wrote exactly, all else to six digits."""
    if unit == "frac":
        return f"{value * 100:.6g} %"
    if unit == "s":
        steps = [(1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")]
    elif unit == "bytes" and (binary := _whole_binary(value)):
        steps = binary
    else:
        base = {"bytes": "B", "bytes/s": "B/s", "1/s": "/s"}.get(unit, unit)
        prefixed = [] if unit.startswith("USD") else ["T", "G", "M", "k"]
        steps = [(10.0 ** (12 - 3 * i), p + base) for i, p in enumerate(prefixed)] + [(1.0, base)]
    scale, name = next((step for step in steps if abs(value) >= step[0]), steps[-1])
    texts = [f"{value / scale:.{digits}g} {name}" for digits in (6, 9, 12)]
    return next((text for text in texts if parse(text, unit) == value), texts[0])


def _whole_binary(value: float) -> list[tuple[float, str]]:
    """Return the binary unit of which ``value`` is a small whole number, if there is one: 64 GiB, but 500 GB."""
    units = [(1024.0**e, p + "B") for p, e in sorted(_BINARY.items(), key=lambda i: -i[1])]
    return [unit for unit in units if value and value % unit[0] == 0 and abs(value) / unit[0] < 10_000][:1]
