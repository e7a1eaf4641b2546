"""What an operator is: one class that says what a demand asks for, who serves it, how long it takes, what is fitted.

A class with a name is found in every installed package, like a kernel (see `sandtable.plugins`); nothing else lists it.
`Op.operator` is that name. Laws are pure and work on NumPy arrays: each column of a demand is a number or an array, and
one call answers for all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from sandtable import plugins
from sandtable.demand.operator_shapes import Number
from sandtable.errors import ConfigError, PlanError, did_you_mean

if TYPE_CHECKING:
    from sandtable.hardware import Roofline

FloatArray = npt.NDArray[np.float64]
Resource = Literal["storage", "memory", "compute", "link", "network"]
# an operator's `Shape` whose entries are float arrays of one length
Columns = Any
Constants = Mapping[str, float]
D = TypeVar("D")


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """One constant of a law: the bounds between which it is fitted, and what a device nobody knows would get.

    ``name`` ends with its unit, as in ``launch_s``. ``starts`` are further values to start a fit from, for a constant
    at which times jump, so that no slope leads to it.
    """

    name: str
    typical: float
    low: float
    high: float
    starts: tuple[float, ...] = ()


class Scatter(NamedTuple):
    """How far the predictions of a law usually lie off, as standard deviations of log(predicted / measured).

    ``own`` at a shape that was left out of a fit to the device, ``siblings`` on a device that was left out. Further,
    to be joined in squares: ``per_doubling`` of the distance from the shapes that were fitted, and ``new_kind`` where
    the operator or its element type was not among them. `tests/bench/test_left_out.py` finds such numbers.
    """

    own: float = 0.12
    siblings: float = 0.18
    per_doubling: float = 0.05
    new_kind: float = 0.1


class Operator(ABC, Generic[D]):
    """One kind of operation, served by a device that its law reads as a ``D``.

    Attributes:
        name: What `Op.operator` says.
        called: What people call many of it, such as "matrix products"; its name in words if not given.
        resource: Who serves it. ``link`` joins host and accelerator, ``network`` the ranks of a group.
        Shape: Named columns that its law reads; None for a plain operation, which states counts alone.
        constants: What is fitted, per device and software, all element types together.
        fitted_as: The key of its constants in device files; operators that share one share their constants.
        loss: How residuals count in a fit: "soft_l1" by their size beyond a tenth; "cauchy" hardly at all far beyond,
            where some of the timed kernels wait for something that the law does not know of, such as the host.
        prior: The log error that a constant e times that of its siblings costs in a fit: it keeps in place what the
            points say little of.
        scatter: How far its law usually lies off, where few points were left out of a fit, or none.
        devices_weigh_alike: Whether all devices count the same in a fit to several, however many timings each has.
        given: What its law takes as given on a device, by name: see `sandtable.hardware.Roofline.given`.
        dense: Whether it is dense arithmetic, which comes close to the peak rate, and to the power limit when it goes
            on for minutes.
    """

    name: ClassVar[str]
    called: ClassVar[str]
    resource: ClassVar[Resource]
    Shape: ClassVar[Any] = None
    constants: ClassVar[tuple[Constant, ...]] = ()
    fitted_as: ClassVar[str]
    loss: ClassVar[str] = "soft_l1"
    prior: ClassVar[float] = 0.01
    dense: ClassVar[bool] = False
    given: ClassVar[tuple[str, ...]] = ()
    scatter: ClassVar[Scatter] = Scatter()
    devices_weigh_alike: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in vars(cls) and not hasattr(cls, "fitted_as"):
            cls.fitted_as = cls.name
        if "name" in vars(cls) and "called" not in vars(cls):
            cls.called = cls.name.replace("_", " ")
        resource = getattr(cls, "resource", None)
        if resource is not None and resource not in get_args(Resource):
            raise ConfigError(
                f"operator {cls.__name__} of {cls.__module__} is served by {resource!r}: write one of "
                f"{', '.join(get_args(Resource))}; what works beside the processor is a 'compute' with a stream of "
                "its own"
            )

    @abstractmethod
    def seconds(self, device: D, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """Return the time of each demand in seconds.

        Args:
            device: What the law reads of the hardware.
            constants: Fitted values by name, in SI units.
            columns: An instance of `Shape` whose entries are arrays; see `columns`.
            dtype: Element type that the arithmetic runs in.
        """

    def columns(self, shape: Any) -> Columns:
        """Return the numbers of a shape, or of its first columns, as arrays of one length."""
        arrays = (np.atleast_1d(np.asarray(number, dtype=np.float64)) for number in self.Shape(*shape))
        return self.Shape(*np.broadcast_arrays(*arrays))

    def typical(self) -> dict[str, float]:
        """Return the constants assumed where neither the device nor its software was ever measured."""
        return {constant.name: constant.typical for constant in self.constants}

    # --- what follows from a shape by counting; numbers may be arrays ---

    def flops(self, shape: Any) -> Number:
        """Return the arithmetic; a multiply and an add count as two. Zero where nobody needs to know."""
        return 0.0

    def is_empty(self, shape: Any) -> Any:
        """Return whether nothing is asked for, so that it takes no time."""
        return False

    def variant(self, shape: Any) -> str:
        """Return which of several ways to do it is meant, where each has constants of its own; empty for the usual."""
        return ""

    def calls(self, stated: float, *, shape: Any = None, n_items: float = 1) -> Number:
        """Return how many calls the host makes for one operation, of which its software ``stated`` some."""
        return stated

    def requests(self, shape: Any) -> int:
        """Return how many requests storage serves for it."""
        return 0

    def crosses(self, shape: Any) -> Any:
        """Return whether it leaves a machine."""
        return False

    def passed_bytes(self, shape: Any) -> Number:
        """Return the bytes that pass each rank of a group."""
        return 0.0


Bound = Literal["bandwidth", "rate", "both"]


class PlainOperator(Operator["Roofline"]):
    """An operation whose time follows from its counts alone, by `plain_seconds`; its class is a name and a resource.

    ``bound_by`` says what can bind it: "bandwidth" for what streams, "rate" for arithmetic, "both" for a roofline.
    With ``states_time`` nothing binds it: `Op.seconds` is its time. A subclass with a `Shape` has a law of its own as
    well, for demands that state one.
    """

    bound_by: ClassVar[Bound] = "bandwidth"
    # of 20 fits to plain operations on a restless virtual machine, whose held-out errors have a median of 4 %; items,
    # bytes and arithmetic grow together, so that a doubling of all three counts as one column's of a shape does
    scatter: ClassVar[Scatter] = Scatter(own=0.05, per_doubling=0.03)
    states_time: ClassVar[bool] = False

    def seconds(self, device: Roofline, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """Refuse: a plain operation has no columns.

        Raises:
            PlanError: always.
        """
        raise PlanError(f"{self.name!r} has no law that reads a shape")


def plain_seconds(
    constants: Constants, *, n_items: Number, n_special: Number, n_bytes: Number, flops: Number, serial: bool
) -> Number:
    """Return ``overhead + items * per_item + specials * per_special + max(bytes / bandwidth, flops / rate)``.

    With ``serial`` the last two are added. Only the overhead is needed: what has no constant takes no time.
    """
    streaming = n_bytes / constants.get("bandwidth_bytes_per_s", np.inf)
    computing = flops / constants.get("rate_flops_per_s", np.inf)
    work = streaming + computing if serial else np.maximum(streaming, computing)
    items = n_items * constants.get("per_item_s", 0.0) + n_special * constants.get("per_special_s", 0.0)
    return constants["overhead_s"] + items + work


@lru_cache(maxsize=1)
def operators() -> dict[str, Operator[Any]]:
    """Return every operator of every installed package by name."""
    return plugins.instances(Operator)  # type: ignore[type-abstract]


def operator_named(name: str) -> Operator[Any]:
    """Return the operator of that name.

    Raises:
        PlanError: no installed package declares it; with the nearest names.
    """
    known = operators()
    if name not in known:
        raise PlanError(f"no installed package declares an operator {name!r}{did_you_mean(name, known)}")
    return known[name]
