"""What every device file shares: fields with units, estimates with intervals, evidence, and a source per number."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from sandtable import units
from sandtable.units import Fraction, UsdPerHour, Watts

GUESS = "guess"
# whole numbers below it are exact as floats
EXACT = 2.0**53
DType = Literal[
    "float64",
    "float32",
    "tf32",
    "bfloat16",
    "float16",
    "fp8",
    "fp8_block",
    "int8",
    "int8_weight_only",
    "fp4",
    "mxfp4",
    "int4_weight_only",
    "q8_0",
    "q5_1",
    "q5_0",
    "q4_1",
    "q4_0",
    "q6_K",
    "q5_K",
    "q4_K",
    "q3_K",
    "q2_K",
]
# weights in blocks that hold their own scales, as llama.cpp stores them: elements and bytes of a block (ggml-common.h)
DTYPE_BLOCKS: dict[str, tuple[int, int]] = {
    "q8_0": (32, 34),
    "q5_1": (32, 24),
    "q5_0": (32, 22),
    "q4_1": (32, 20),
    "q4_0": (32, 18),
    "q6_K": (256, 210),
    "q5_K": (256, 176),
    "q4_K": (256, 144),
    "q3_K": (256, 110),
    "q2_K": (256, 84),
}
DTYPE_BYTES: dict[str, float] = {
    "float64": 8,
    "float32": 4,
    "tf32": 4,
    "bfloat16": 2,
    "float16": 2,
    "fp8": 1,
    "int8": 1,
    "fp4": 0.5,
    # quantised weights, with the scales stored beside them: one for a block of 128 x 128, a row, or 32 elements
    "fp8_block": 1,
    "int8_weight_only": 1,
    "int4_weight_only": 0.5,
    "mxfp4": 0.53,
    **{name: n_bytes / n_items for name, (n_items, n_bytes) in DTYPE_BLOCKS.items()},
}
# what a product with such weights multiplies in; the other types multiply in themselves
DTYPE_ARITHMETIC: dict[str, str] = {
    "fp8_block": "fp8",
    "int8_weight_only": "bfloat16",
    "int4_weight_only": "bfloat16",
    "mxfp4": "fp4",
    # llama.cpp brings the activations to 8 bits as well and multiplies integers
    **dict.fromkeys(DTYPE_BLOCKS, "int8"),
}
# types that hold every value of another, sign, exponent and mantissa: what stands in where a device has no units for it
_WIDER = ("bfloat16", "float16", "tf32", "float32")
DTYPE_STAND_INS: dict[str, tuple[str, ...]] = {
    "tf32": ("float32",),
    "bfloat16": ("tf32", "float32"),
    "float16": ("tf32", "float32"),
    # narrow weights are widened into whatever 16 bits the activations have
    "fp8": _WIDER,
    "fp4": _WIDER,
    "int8": _WIDER,
    "int8_weight_only": _WIDER,
    "int4_weight_only": _WIDER,
}


class Frozen(BaseModel):
    """Base of everything read from or written to files: immutable, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, alias_generator=units.strip_suffix
    )
    # names under which people look for a field -> its own
    also_called: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _read_counts(cls, data: Any) -> Any:
        """Read ``20B`` and ``1.5M`` in every field that is a plain number."""
        if not isinstance(data, dict):
            return data
        texts = [key for key, value in data.items() if isinstance(value, str) and value[:1].isdigit()]
        counted = {key: _counted(data[key]) for key in texts if key in _plain_numbers(cls)}
        return data | counted if counted else data

    def entries(self, *, stated: bool = False) -> Iterator[tuple[str, str, Any]]:
        """Yield name, key in a file, and value of each field; with ``stated``, only of those that were given."""
        for name, field in type(self).model_fields.items():
            if not stated or name in self.model_fields_set:
                yield name, field.alias or name, getattr(self, name)


@lru_cache(maxsize=512)
def _plain_numbers(model: type[BaseModel]) -> frozenset[str]:
    """Return the names, in code and in a file, of the fields that are whole or decimal numbers without a unit."""
    plain = (int, float)
    fields = [
        (name, field.alias or name)
        for name, field in model.model_fields.items()
        if not any(isinstance(part, BeforeValidator) for part in field.metadata)
        and (field.annotation in plain or set(get_args(field.annotation)) & set(plain))
        and str not in get_args(field.annotation)
    ]
    return frozenset(name for names in fields for name in names)


def _counted(text: str) -> Any:
    """Return what a text such as ``20B`` counts; any other text as it is, for whoever validates it."""
    try:
        value = units.parse_count(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() and abs(value) < EXACT else value


T = TypeVar("T")


class Estimate(Frozen, Generic[T]):
    """A value with a 90 % interval. In YAML ``{value: 118 us, low: 110 us, high: 126 us}`` or just ``118 us``."""

    value: T
    low: T
    high: T

    @model_validator(mode="before")
    @classmethod
    def _from_scalar(cls, data: Any) -> Any:
        if isinstance(data, str | int | float):
            return {"value": data, "low": data, "high": data}
        if isinstance(data, dict) and "value" in data:
            return {"low": data["value"], "high": data["value"], **data}
        return data

    @model_validator(mode="after")
    def _ordered(self) -> Estimate[T]:
        if not self.low <= self.value <= self.high:  # type: ignore[operator]
            raise ValueError(f"an interval needs low <= value <= high, not {self.low}, {self.value}, {self.high}")
        return self


# name, least and most of a column, as in "m 1 to 8192"
_NUMBER = r"\d[\d.]*(e[-+]?\d+)?"
_COLUMN = rf"\w+ {_NUMBER} to {_NUMBER}"


class Evidence(Frozen):
    """How well a fit is supported: what was measured, when, and how far off the fit was."""

    date: dt.date
    n_points: int = Field(ge=1)
    n_samples: int = Field(ge=1)
    method: str
    median_abs_error_frac: Fraction
    p90_abs_error_frac: Fraction
    held_out_median_abs_error_frac: Fraction | None = None
    # predicted / measured at the ends of the 90 % interval, of held-out points and of repeats
    residual_low_frac: Fraction = Field(gt=0, le=1)
    residual_high_frac: Fraction = Field(ge=1)
    repeat_spread_frac: Fraction | None = None
    # how far the machine as a whole wanders from one minute to another: half of a 90 % interval, part of the residuals
    drift_frac: Fraction | None = None
    # what of the square of a held-out miss is seen again when it is timed again; the rest is the timing's scatter
    again_frac: Fraction | None = Field(default=None, ge=0, le=1)
    # points that other programs disturbed and that were timed again, and those that never settled
    n_disturbed: int | None = Field(default=None, ge=1)
    n_unsettled: int | None = Field(default=None, ge=1)
    # what was fitted: operators with element types, "gemm bfloat16, gemm fp8", and how far the columns of their shapes
    # go, "m 1 to 8192, n 1024 to 65536"; see `sandtable.model.extrapolation`
    kinds: str = ""
    shapes: str = Field(default="", pattern=rf"^({_COLUMN}(, {_COLUMN})*)?$")


def as_date(value: Any) -> Any:
    """Return a YAML timestamp as the text of its date."""
    return value.isoformat() if isinstance(value, dt.datetime) else value


class Price(Frozen):
    """What an hour costs. ``kind`` is how it was bought; ``as_of`` when the price was seen.

    ``instance`` is the provider's name of the machine, by which its price list is searched.
    """

    usd_per_h: Annotated[UsdPerHour, Field(ge=0, alias="hour")]
    kind: Literal["on_demand", "spot", "reserved", "owned"] = "on_demand"
    as_of: Annotated[dt.date, BeforeValidator(as_date)]
    provider: str | None = None
    instance: str | None = None
    region: str | None = None


class Power(Frozen):
    """Electrical power: ``idle`` always, and up to ``max`` in proportion to how busy the binding resource is."""

    idle_w: Watts = Field(ge=0)
    max_w: Watts = Field(gt=0)


def printable(text: str) -> str:
    """Return a title as it is; one with control characters could steer the terminal that shows it.

    Raises:
        ValueError: it has some.
    """
    odd = next((character for character in text if not character.isprintable()), None)
    if odd is not None:
        raise ValueError(f"character U+{ord(odd):04X} cannot be shown: write a title in one line, without it")
    return text


Title = Annotated[str, AfterValidator(printable)]


class Component(Frozen):
    """What every device file has: a name, a title for people, and a source for every number."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*(@[a-z0-9_.-]+)?$")
    title: Title
    notes: str | None = None
    sources: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _every_number_has_a_source(self) -> Component:
        for path in number_paths(self):
            if source_of(self, path) is None:
                raise ValueError(
                    f"{path} has no source: add 'sources: {{{path}: <where the number is from>}}', or '{GUESS}'"
                )
        return self

    def components(self) -> list[Component]:
        """Return the parts that have names and sources of their own."""
        return []

    def guesses(self) -> list[str]:
        """Return the dotted paths of the numbers whose source is a guess; what a file leaves out claims nothing."""
        return [path for path in number_paths(self, stated=True) if str(source_of(self, path)).startswith(GUESS)]


class Number(NamedTuple):
    """A number of a device file: its dotted YAML path, the value, and which quantity that is ("1" for a plain one)."""

    path: str
    value: Any
    quantity: str


def numbers(component: Component, *, stated: bool = False) -> Iterator[Number]:
    """Yield every number in the datasheet, fitted, laws, variants, power and price sections.

    With ``stated``, of those only that the file gives, not of defaults.
    """
    for section in ("datasheet", "fitted", "laws", "variants", "power", "price"):
        value = getattr(component, section, None)
        if value is not None:
            yield from _walk(Number(section, value, "1"), stated)


def number_paths(component: Component, *, stated: bool = False) -> Iterator[str]:
    """Yield the dotted YAML path of every number; see `numbers`."""
    return (number.path for number in numbers(component, stated=stated))


def _walk(found: Number, stated: bool) -> Iterator[Number]:
    path, value, quantity = found
    if isinstance(value, Evidence | Estimate):
        yield found
    elif isinstance(value, Frozen):
        for name, part, item in value.entries(stated=stated):
            yield from _walk(Number(f"{path}.{part}", item, units.quantity_of(name) or "1"), stated)
    elif isinstance(value, dict | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _walk(Number(f"{path}.{key}", item, quantity), stated)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield found


def source_of(component: Component, path: str) -> str | None:
    """Return the source of the number at ``path``: its own entry, or the nearest one above it."""
    while path:
        if path in component.sources:
            return component.sources[path]
        path = path.rpartition(".")[0]
    return None
