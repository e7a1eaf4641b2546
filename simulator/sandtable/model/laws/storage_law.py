"""How long reads from a storage device take: a law of request size and concurrency.

With ``n`` requests of ``c`` bytes in flight, each lane needs ``lane(c) = t0 + c / b_lane`` on an idle device,
so that latency allows ``x_lat = n c / lane``. The device as a whole serves at most one request per
``((1/R)^q + (c/B)^q)^(1/q)`` seconds: ``q = 1`` is a controller that first handles and then transfers, a large
``q`` one that overlaps the two. The two limits join smoothly, ``x = (x_lat^-p + x_cap^-p)^(-1/p)``, as waiting
grows before either is reached. With p = q = 3 this is a closed form that fits the random-read curve of
"LLM in a flash" (arXiv 2312.11514, Fig. 2b).

A batch of ``K`` reads, waited for as a whole, takes ``d lane(c) + (K - 1) c / x(n, c)``: the pipe fills once (``d``
says how much of that is seen), then completions follow each other at the rate of the law. The event engine applies
the same law request by request (`sandtable.engine.resources`), and a theory test holds the two together.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, overload

import numpy as np
import numpy.typing as npt

from sandtable.demand.operator import Columns, Constants, Operator, Resource
from sandtable.demand.operator_shapes import (
    NewFileShape,
    RandomReadShape,
    SequentialReadShape,
    SequentialWriteShape,
)
from sandtable.errors import PlanError
from sandtable.hardware import Evidence, Storage, StorageDatasheet, StorageFit

FloatArray = npt.NDArray[np.float64]
# "saturated" figures are taken at this many requests in flight, or this many times what the device's latency makes
# necessary to reach its rate at all, whichever is more: a set of many drives needs more than one drive
SATURATING = 128
SATURATING_FACTOR = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageLaw:
    """Parameters of the law; see the module for their meaning.

    ``residual_low_frac`` and ``residual_high_frac`` are predicted / measured at the 5th and 95th percentile of
    points held out from the fit; ``drift_frac`` is what of that the whole machine shares. ``new_file_s`` is what making
    a small file takes, with fractions of its own.
    """

    first_byte_s: float
    lane_bytes_per_s: float
    requests_per_s: float
    bandwidth_bytes_per_s: float
    sequential_bytes_per_s: float
    knee: float
    blend: float
    drain: float
    residual_low_frac: float
    residual_high_frac: float
    sequential_low_frac: float
    sequential_high_frac: float
    drift_frac: float = 0.0
    write_bytes_per_s: float | None = None
    new_file_s: float = 0.0
    new_file_low_frac: float = 1.0
    new_file_high_frac: float = 1.0

    @property
    def sequential_write_bytes_per_s(self) -> float:
        """Rate of large writes: the data sheet's, for none is fitted; where it states none, that of reading."""
        return self.write_bytes_per_s or self.sequential_bytes_per_s


def law_of(storage: Storage) -> StorageLaw:
    """Return the device's law: fitted where it was calibrated, else its data sheet in the shape of ``like``.

    A data sheet states limits (IOPS, bandwidth) but seldom the latency under load. What it leaves open (first-byte
    time, the lane's share of the bandwidth, how sharp the knee is) is taken from the device named in ``like``.

    Raises:
        PlanError: neither a fit nor a ``like`` device to take the shape from.
    """
    new_file = storage.new_file
    return replace(
        _law_of_reads(storage),
        new_file_s=new_file.value,
        new_file_low_frac=new_file.value / new_file.high,
        new_file_high_frac=new_file.value / new_file.low,
    )


def _law_of_reads(storage: Storage) -> StorageLaw:
    if storage.fitted is not None:
        return _fitted_law(storage)
    if storage.like is None or storage.like.fitted is None:
        raise PlanError(f"storage {storage.name!r} has neither a 'fitted' block nor a fitted device in 'like'")
    reference = storage.like.datasheet.sequential_read_bytes_per_s
    return scaled_law(_law_of_reads(storage.like), reference, storage.datasheet)


def scaled_law(shape: StorageLaw, reference_bytes_per_s: float, sheet: StorageDatasheet) -> StorageLaw:
    """Return the law of a data sheet in the shape of a device whose sequential rate is ``reference_bytes_per_s``."""
    bandwidth = sheet.sequential_read_bytes_per_s
    scale = bandwidth / reference_bytes_per_s
    lane_bandwidth = shape.lane_bytes_per_s * scale
    first_byte = shape.first_byte_s
    if sheet.read_latency_s is not None:
        first_byte = max(0.1 * sheet.read_latency_s, sheet.read_latency_s - 4096 / lane_bandwidth)
    requests = shape.requests_per_s * scale
    if sheet.random_read_per_s is not None:
        lane = first_byte + 4096 / lane_bandwidth
        requests = _handling_per_s(sheet.random_read_per_s, lane, bandwidth, shape)
    return replace(
        shape,
        first_byte_s=first_byte,
        lane_bytes_per_s=lane_bandwidth,
        requests_per_s=requests,
        bandwidth_bytes_per_s=bandwidth,
        sequential_bytes_per_s=bandwidth,
        write_bytes_per_s=sheet.sequential_write_bytes_per_s,
    )


def saturating(requests_per_s: float, request_s: float) -> float:
    """Return how many requests in flight saturate a device of that rate and time of a lone request."""
    return max(float(SATURATING), SATURATING_FACTOR * requests_per_s * request_s)


def _handling_per_s(sheet_per_s: float, lane_s: float, bandwidth_bytes_per_s: float, shape: StorageLaw) -> float:
    """Return the rate of handling at which the law gives the sheet's saturated 4 KiB rate.

    The sheet's figure includes the transfer, and the little that waiting costs even at saturation (the knee).
    """
    by_latency = saturating(sheet_per_s, lane_s) / lane_s
    by_device = (sheet_per_s**-shape.knee - by_latency**-shape.knee) ** (-1 / shape.knee)
    handling = (1 / by_device) ** shape.blend - (4096 / bandwidth_bytes_per_s) ** shape.blend
    floor = (0.01 / by_device) ** shape.blend
    return float(max(handling, floor) ** (-1 / shape.blend))


def _fitted_law(storage: Storage) -> StorageLaw:
    fit = storage.fitted
    assert fit is not None
    sequential: Evidence = fit.sequential_evidence or fit.random_evidence
    return StorageLaw(
        first_byte_s=fit.first_byte_s.value,
        lane_bytes_per_s=fit.lane_bytes_per_s.value,
        requests_per_s=fit.requests_per_s.value,
        bandwidth_bytes_per_s=fit.bandwidth_bytes_per_s.value,
        sequential_bytes_per_s=fit.sequential_bytes_per_s.value,
        knee=fit.knee.value,
        blend=fit.blend.value,
        drain=fit.drain.value,
        residual_low_frac=fit.random_evidence.residual_low_frac,
        residual_high_frac=fit.random_evidence.residual_high_frac,
        sequential_low_frac=sequential.residual_low_frac,
        sequential_high_frac=sequential.residual_high_frac,
        drift_frac=fit.random_evidence.drift_frac or 0.0,
        write_bytes_per_s=storage.datasheet.sequential_write_bytes_per_s,
    )


@overload
def lane_s(law: StorageLaw, chunk_bytes: float) -> float: ...
@overload
def lane_s(law: StorageLaw, chunk_bytes: FloatArray) -> FloatArray: ...
def lane_s(law: StorageLaw, chunk_bytes: Any) -> Any:
    """Return the time of one request on an idle device, in seconds."""
    return law.first_byte_s + chunk_bytes / law.lane_bytes_per_s


@overload
def throughput_bytes_per_s(law: StorageLaw, chunk_bytes: float, concurrency: float) -> float: ...
@overload
def throughput_bytes_per_s(law: StorageLaw, chunk_bytes: FloatArray, concurrency: FloatArray) -> FloatArray: ...
def throughput_bytes_per_s(law: StorageLaw, chunk_bytes: Any, concurrency: Any) -> Any:
    """Return the sustained rate of random reads, in bytes per second; accepts arrays."""
    by_latency = concurrency * chunk_bytes / lane_s(law, chunk_bytes)
    by_device = chunk_bytes / service_s(law, chunk_bytes)
    return (by_latency**-law.knee + by_device**-law.knee) ** (-1 / law.knee)


@overload
def service_s(law: StorageLaw, chunk_bytes: float) -> float: ...
@overload
def service_s(law: StorageLaw, chunk_bytes: FloatArray) -> FloatArray: ...
def service_s(law: StorageLaw, chunk_bytes: Any) -> Any:
    """Return the device's time per request when it is saturated, in seconds."""
    handling, transfer = 1 / law.requests_per_s, chunk_bytes / law.bandwidth_bytes_per_s
    return (handling**law.blend + transfer**law.blend) ** (1 / law.blend)


def interval_s(law: StorageLaw, chunk_bytes: float, concurrency: float) -> float:
    """Return the mean time between two completions, in seconds, with ``concurrency`` requests in flight."""
    return chunk_bytes / throughput_bytes_per_s(law, chunk_bytes, concurrency)


def fill_s(law: StorageLaw, chunk_bytes: float) -> float:
    """Return the time before the first completion of a batch, in seconds."""
    return law.drain * lane_s(law, chunk_bytes)


@overload
def batch_s(law: StorageLaw, n_requests: float, chunk_bytes: float, concurrency: float) -> float: ...
@overload
def batch_s(
    law: StorageLaw, n_requests: FloatArray, chunk_bytes: FloatArray, concurrency: FloatArray
) -> FloatArray: ...
def batch_s(law: StorageLaw, n_requests: Any, chunk_bytes: Any, concurrency: Any) -> Any:
    """Return the time of ``n_requests`` random reads, waited for as a whole, in seconds; accepts arrays."""
    in_flight = np.minimum(concurrency, np.maximum(n_requests, 1))
    rate = throughput_bytes_per_s(law, chunk_bytes, in_flight)
    seconds = law.drain * lane_s(law, chunk_bytes) + np.maximum(n_requests - 1, 0) * chunk_bytes / rate
    # one request alone is one lane, whatever the drain
    seconds = np.maximum(seconds, lane_s(law, chunk_bytes))
    result = np.where(np.asarray(n_requests) > 0, seconds, 0.0)
    return float(result) if result.ndim == 0 else result


def sequential_s(law: StorageLaw, n_bytes: float) -> float:
    """Return the time of reading ``n_bytes`` in order with enough requests in flight, in seconds."""
    return law.first_byte_s + n_bytes / law.sequential_bytes_per_s if n_bytes > 0 else 0.0


def sequential_write_s(law: StorageLaw, n_bytes: float) -> float:
    """Return the time of writing ``n_bytes`` in order with enough requests in flight, in seconds."""
    return law.first_byte_s + n_bytes / law.sequential_write_bytes_per_s if n_bytes > 0 else 0.0


def sequential_bytes_per_s(law: StorageLaw, chunk_bytes: float, concurrency: float) -> float:
    """Return the sustained rate of reading in order in pieces of ``chunk_bytes``, in bytes per second.

    A drive spreads a piece in order over all its channels, so a lane is as wide as the drive: the first-byte time is
    all that few requests in flight cost. (Intel P3600, 512 KiB, 1 to 8 in flight: within 11 %.)
    """
    lane = law.first_byte_s + chunk_bytes / law.sequential_bytes_per_s
    by_latency = concurrency * chunk_bytes / lane
    return float((by_latency**-law.knee + law.sequential_bytes_per_s**-law.knee) ** (-1 / law.knee))


class StorageOperator(Operator[StorageLaw]):
    """What a storage device is asked for; the device's law holds everything that was fitted to it."""

    resource: ClassVar[Resource] = "storage"

    @abstractmethod
    def spread(self, law: StorageLaw) -> tuple[float, float]:
        """Return predicted over measured at the ends of the 90 % interval."""

    def evidence(self, fit: StorageFit) -> Evidence:
        """Return what supports the law of these requests."""
        return fit.random_evidence


class RandomRead(StorageOperator):
    """Scattered reads, waited for as a whole."""

    name: ClassVar[str] = "random_read"
    Shape: ClassVar[type[RandomReadShape]] = RandomReadShape

    def seconds(self, device: StorageLaw, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `batch_s`."""
        return np.asarray(batch_s(device, *columns))

    def spread(self, law: StorageLaw) -> tuple[float, float]:
        """That of points of random reads."""
        return law.residual_low_frac, law.residual_high_frac

    def requests(self, shape: RandomReadShape) -> int:
        """One for each chunk."""
        return int(shape.n_chunks)


class SequentialRead(StorageOperator):
    """A read in order, with enough requests in flight."""

    name: ClassVar[str] = "sequential_read"
    Shape: ClassVar[Any] = SequentialReadShape

    def seconds(self, device: StorageLaw, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `sequential_s`."""
        return np.asarray(sequential_s(device, columns.n_bytes))

    def spread(self, law: StorageLaw) -> tuple[float, float]:
        """That of points of reads in order."""
        return law.sequential_low_frac, law.sequential_high_frac

    def evidence(self, fit: StorageFit) -> Evidence:
        """That of points of reads in order, where they were judged on their own."""
        return fit.sequential_evidence or fit.random_evidence

    def requests(self, shape: SequentialReadShape) -> int:
        """One for each piece."""
        return math.ceil(shape.n_bytes / shape.chunk_bytes)


class SequentialWrite(SequentialRead):
    """A write in order, with enough requests in flight; as uncertain as a read is."""

    name: ClassVar[str] = "sequential_write"
    Shape: ClassVar[Any] = SequentialWriteShape

    def seconds(self, device: StorageLaw, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `sequential_write_s`."""
        return np.asarray(sequential_write_s(device, columns.n_bytes))


class NewFile(StorageOperator):
    """Small files that are whole and on the disk before they take their name, as results are written.

    A file is synced, renamed, and its folder synced: two turns of the file system's journal and of the drive's cache,
    which take as long for a byte as for a million.
    """

    name: ClassVar[str] = "new_file"
    Shape: ClassVar[type[NewFileShape]] = NewFileShape

    def seconds(self, device: StorageLaw, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """One after the other."""
        return np.asarray(columns.n_files * device.new_file_s)

    def spread(self, law: StorageLaw) -> tuple[float, float]:
        """That of files which were made."""
        return law.new_file_low_frac, law.new_file_high_frac
