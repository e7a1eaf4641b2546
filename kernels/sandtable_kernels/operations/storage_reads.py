"""Reading a file on a real device: at random, in order, and for the first time.

`RandomRead` and `SequentialRead` give the points from which a storage law is fitted. `ColdRead` shows what that law
leaves out: under a virtual disk, the host may cache what was read before, so the first touch can be slower.
`Fio` asks fio (https://github.com/axboe/fio) for the same points, as a second opinion.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from sandtable.demand.instruments import StorageCrossCheck
from sandtable.demand.kernel import Dims, Kernel, KernelContext
from sandtable.demand.op import Op, random_read, sequential_read
from sandtable.errors import ConfigError, MeasureError, NoDevice
from sandtable.system import atomic_files
from sandtable.units import format_bytes
from sandtable_kernels.files import buffers, container
from sandtable_kernels.files.reader import ALIGNMENT, FlashReader

KIB: Final = 1 << 10
MIB: Final = 1 << 20
_BATCH_PER_LANE: Final = 12
_CALL_S: Final = 0.2
_EXAMPLE_BYTES: Final = 4 * MIB
_PIECE_BYTES: Final = 16 * MIB


def ensure_file(folder: Path, n_bytes: int, *, seed: int = 0) -> Path:
    """Return a file of ``n_bytes`` random bytes in ``folder``, writing it unless it is there already.

    Its name carries its size; it takes that name only when it is whole, and nothing else is touched.

    Raises:
        ConfigError: the folder cannot be used.
        DoesNotFit: the disk is too small.
    """
    n_bytes = max(ALIGNMENT, n_bytes // ALIGNMENT * ALIGNMENT)
    path = folder / f"sandtable-random-{n_bytes}.bin"
    if not (path.is_file() and path.stat().st_size == n_bytes):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"this folder cannot be made: {error.strerror}", file=str(folder)) from error
        _write_random(path, n_bytes, seed)
    return path


def _write_random(path: Path, n_bytes: int, seed: int) -> None:
    # random, so that no layer below can compress or share blocks
    rng = np.random.Generator(np.random.SFC64(seed))
    piece = buffers.aligned_empty((min(_PIECE_BYTES, n_bytes),), np.uint8)
    with container.replacing(path, n_bytes) as file:
        for start in range(0, n_bytes, len(piece)):
            part = piece[: min(len(piece), n_bytes - start)]
            part.view(np.uint64)[:] = rng.integers(0, 1 << 64, len(part) // 8, np.uint64)
            file.write_at(start, part)


def n_requests_of_a_long_call(chunk_bytes: int, concurrency: int) -> int:
    """Return how many requests take about 0.2 s on an ordinary disk; the exact time does not matter."""
    lane_s = 100e-6 + chunk_bytes / 1.3e9
    per_s = min(concurrency / lane_s, 60e3, 1.5e9 / chunk_bytes)
    return max(round(_CALL_S * per_s), concurrency)


class RandomRead(Kernel):
    """Batches of reads at random aligned offsets. dims: chunk_bytes, concurrency, n_requests.

    Every point comes as a long batch and as one of 12 requests per lane, in which the last requests, that no
    others overlap, weigh as they do in a token.
    """

    name: ClassVar[str] = "random_read"
    calibrates: ClassVar[str | None] = "storage"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        chunks = (4, 16, 64, 256) if quick else (4, 8, 16, 32, 64, 256, 1024)
        lanes = (1, 4, 16, 32) if quick else (1, 2, 4, 8, 16, 32, 64)
        points: list[Dims] = []
        for chunk_bytes in (kib * KIB for kib in chunks):
            for concurrency in lanes:
                short, long = (
                    _BATCH_PER_LANE * concurrency,
                    n_requests_of_a_long_call(chunk_bytes, concurrency),
                )
                counts = [short, long] if long > 2 * short else [max(short, long)]
                points += [_point(chunk_bytes, concurrency, n) for n in counts]
        return points

    def probes(self) -> Sequence[Dims]:
        return [_point(16 * KIB, 32, 3000)]

    def cost(self, dims: Dims) -> Op:
        return random_read(
            self.name,
            n_chunks=dims["n_requests"],
            chunk_bytes=dims["chunk_bytes"],
            concurrency=dims["concurrency"],
        )

    def prepare(self, dims: Dims, context: KernelContext) -> AbstractContextManager[Callable[[], None]]:
        return self._prepared(dims, context)

    @contextlib.contextmanager
    def _prepared(self, dims: Dims, context: KernelContext) -> Iterator[Callable[[], None]]:
        path = ensure_file(context.folder, context.file_bytes, seed=context.seed)
        size, n = dims["chunk_bytes"], dims["n_requests"]
        rng = np.random.default_rng(context.seed)
        with FlashReader(path, concurrency=dims["concurrency"]) as reader:
            n_places = _n_places(reader.n_bytes, size)
            memory, addresses = _targets(size, n, dims["concurrency"])

            def call() -> None:
                reader.read_batch(rng.integers(0, n_places, n) * size, size, addresses)

            yield call
            del memory

    def example(self) -> Dims:
        return _point(16 * KIB, 8, 40)

    def run(self, dims: Dims, context: KernelContext) -> np.ndarray[Any, Any]:
        path, offsets = _example_reads(dims, context)
        out = buffers.aligned_empty((len(offsets), dims["chunk_bytes"]), np.uint8)
        addresses = buffers.address(out) + np.arange(len(offsets)) * dims["chunk_bytes"]
        with FlashReader(path, concurrency=dims["concurrency"]) as reader:
            reader.read_batch(offsets, dims["chunk_bytes"], addresses)
        return out

    def reference(self, dims: Dims, context: KernelContext) -> np.ndarray[Any, Any]:
        path, offsets = _example_reads(dims, context)
        content = np.fromfile(path, np.uint8)
        return np.stack([content[start : start + dims["chunk_bytes"]] for start in offsets])


class SequentialRead(Kernel):
    """Reads in order, each call going on where the last one ended. dims: chunk_bytes, concurrency, n_bytes."""

    name: ClassVar[str] = "sequential_read"
    calibrates: ClassVar[str | None] = "storage"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        shapes = [(8, 4), (1, 4)] if quick else [(8, 4), (1, 4), (8, 1), (1, 1), (1, 16), (2, 8)]
        return [{"chunk_bytes": chunk * MIB, "concurrency": lanes, "n_bytes": 256 * MIB} for chunk, lanes in shapes]

    def probes(self) -> Sequence[Dims]:
        return [{"chunk_bytes": MIB, "concurrency": 4, "n_bytes": 64 * MIB}]

    def cost(self, dims: Dims) -> Op:
        return sequential_read(
            self.name,
            n_bytes=dims["n_bytes"],
            chunk_bytes=dims["chunk_bytes"],
            concurrency=dims["concurrency"],
        )

    def prepare(self, dims: Dims, context: KernelContext) -> AbstractContextManager[Callable[[], None]]:
        return self._prepared(dims, context)

    @contextlib.contextmanager
    def _prepared(self, dims: Dims, context: KernelContext) -> Iterator[Callable[[], None]]:
        path = ensure_file(context.folder, context.file_bytes, seed=context.seed)
        n_bytes = dims["n_bytes"]
        memory = buffers.aligned_empty((n_bytes,), np.uint8)
        with FlashReader(path, concurrency=dims["concurrency"]) as reader:
            n_spans = _n_places(reader.n_bytes, n_bytes)
            turn = 0

            def call() -> None:
                nonlocal turn
                start = turn % n_spans * n_bytes
                reader.read_sequential(start, n_bytes, buffers.address(memory), chunk_bytes=dims["chunk_bytes"])
                turn += 1

            yield call

    def example(self) -> Dims:
        return {"chunk_bytes": 256 * KIB, "concurrency": 4, "n_bytes": 2 * MIB + 64 * KIB}

    def run(self, dims: Dims, context: KernelContext) -> np.ndarray[Any, Any]:
        path = ensure_file(context.folder, _EXAMPLE_BYTES, seed=context.seed)
        out = buffers.aligned_empty((dims["n_bytes"],), np.uint8)
        with FlashReader(path, concurrency=dims["concurrency"]) as reader:
            reader.read_sequential(ALIGNMENT, len(out), buffers.address(out), chunk_bytes=dims["chunk_bytes"])
        return out

    def reference(self, dims: Dims, context: KernelContext) -> np.ndarray[Any, Any]:
        path = ensure_file(context.folder, _EXAMPLE_BYTES, seed=context.seed)
        return np.fromfile(path, np.uint8, dims["n_bytes"], offset=ALIGNMENT)


class ColdRead(RandomRead):
    """Random reads of regions that were not read since they were written, or of the same regions again.

    dims: chunk_bytes, concurrency, n_requests, touch ("first" or "again"). Not part of the fit: the ratio of the
    two says how far a calibration on a warm file can be trusted on this machine.
    """

    name: ClassVar[str] = "cold_read"
    once: ClassVar[bool] = True

    def probes(self) -> Sequence[Dims]:
        return ()

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        shapes = [(16, 32)] if quick else [(4, 32), (16, 1), (16, 32), (256, 8)]
        return [
            {**_point(kib * KIB, lanes, _BATCH_PER_LANE * lanes), "touch": touch}
            for kib, lanes in shapes
            for touch in ("first", "again")
        ]

    @contextlib.contextmanager
    def _prepared(self, dims: Dims, context: KernelContext) -> Iterator[Callable[[], None]]:
        size, n = dims["chunk_bytes"], dims["n_requests"]
        with _fresh_file(context) as path, FlashReader(path, concurrency=dims["concurrency"]) as reader:
            order = np.random.default_rng(context.seed).permutation(_n_places(reader.n_bytes, size)) * size
            memory, addresses = _targets(size, n, dims["concurrency"])
            if dims["touch"] == "again":
                _read_all(reader)
            used = 0

            def call() -> None:
                nonlocal used
                if used + n > len(order):
                    if dims["touch"] == "first":
                        raise MeasureError(
                            f"all {format_bytes(reader.n_bytes)} of {path} have been read once: "
                            "measure fewer repeats, or give a larger file"
                        )
                    used = 0
                reader.read_batch(order[used : used + n], size, addresses)
                used += n

            yield call
            del memory

    def example(self) -> Dims:
        return {**super().example(), "touch": "first"}


def _point(chunk_bytes: int, concurrency: int, n_requests: int) -> dict[str, Any]:
    return {"chunk_bytes": chunk_bytes, "concurrency": concurrency, "n_requests": n_requests}


def _n_places(n_bytes: int, size: int) -> int:
    if n_bytes < size:
        raise ConfigError(f"reads of {format_bytes(size)} need a file larger than {format_bytes(n_bytes)}")
    return n_bytes // size


def _targets(size: int, n: int, concurrency: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return memory, and where in it each of ``n`` requests goes: int64[n].

    Neighbours in a batch never share a place; far ones do, so that a long batch needs no large memory.
    """
    n_rows = min(n, max(4 * concurrency, 64 * MIB // size))
    memory = buffers.aligned_empty((n_rows, size), np.uint8)
    return memory, buffers.address(memory) + np.arange(n, dtype=np.int64) % n_rows * size


def _example_reads(dims: Dims, context: KernelContext) -> tuple[Path, npt.NDArray[np.int64]]:
    path = ensure_file(context.folder, _EXAMPLE_BYTES, seed=context.seed)
    rng = np.random.default_rng(context.seed)
    return path, rng.integers(0, _n_places(_EXAMPLE_BYTES, dims["chunk_bytes"]), dims["n_requests"]) * dims[
        "chunk_bytes"
    ]


@contextlib.contextmanager
def _fresh_file(context: KernelContext) -> Iterator[Path]:
    context.folder.mkdir(parents=True, exist_ok=True)
    with atomic_files.temporary_folder(context.folder, "cold") as folder:
        yield ensure_file(folder, context.file_bytes, seed=context.seed)


def _read_all(reader: FlashReader) -> None:
    span = min(reader.n_bytes, 64 * MIB)
    memory = buffers.aligned_empty((span,), np.uint8)
    for start in range(0, reader.n_bytes, span):
        n = min(span, reader.n_bytes - start)
        reader.read_sequential(start, n, buffers.address(memory), chunk_bytes=MIB, concurrency=8)


# --- fio ---------------------------------------------------------------------------------------------------


class Fio(StorageCrossCheck):
    """Random direct reads with fio.

    fio's buffers are made of small pages, ours of huge ones. Under a virtual disk, where every page of a request
    costs, fio is therefore the slower one for large chunks (seen at 256 KiB: half).
    """

    name: ClassVar[str] = "fio"

    def bytes_per_s(self, path: Path, points: Sequence[tuple[int, int]], runtime_s: float) -> list[float]:
        """Return fio's rate at each point; ``runtime_s`` is spent on each."""
        program = shutil.which("fio")
        if program is None:
            raise NoDevice("the cross-check needs fio, which is not installed: apt-get install fio")
        return [_fio_point(program, path, chunk_bytes, depth, runtime_s) for chunk_bytes, depth in points]


def _fio_point(program: str, path: Path, chunk_bytes: int, concurrency: int, runtime_s: float) -> float:
    options = {
        "name": "sandtable",
        "filename": str(path).replace(":", "\\:"),  # a bare colon separates file names
        "rw": "randread",
        "direct": 1,
        "ioengine": "libaio" if sys.platform == "linux" else "posixaio",
        "bs": chunk_bytes,
        "iodepth": concurrency,
        "size": path.stat().st_size,
        "runtime": f"{round(runtime_s * 1000)}ms",
        "output-format": "json",
    }
    command = [program, *(f"--{key}={value}" for key, value in options.items())]
    command += ["--time_based", "--norandommap", "--randrepeat=0", "--readonly"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        read = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]
    except (ValueError, LookupError) as error:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or ["no output"]
        raise MeasureError(f"fio on {path} failed (exit code {done.returncode}): {last[0]}") from error
    if done.returncode != 0 or not read["bw_bytes"]:
        raise MeasureError(f"fio on {path} read nothing (exit code {done.returncode})")
    return float(read["bw_bytes"])
