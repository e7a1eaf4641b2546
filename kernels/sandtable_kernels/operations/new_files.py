"""Small files made as results are: whole and on the disk before they take their name."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from sandtable.demand.kernel import Dims, Kernel, KernelContext
from sandtable.demand.op import Op, new_files
from sandtable.system import atomic_files
from sandtable_kernels.files import buffers, container
from sandtable_kernels.files.reader import ALIGNMENT

Bytes = npt.NDArray[np.uint8]


class NewFile(Kernel):
    """Files of a page, one after the other: each is written, synced, named, and its folder synced. dims: n_files."""

    name: ClassVar[str] = "new_file"
    calibrates: ClassVar[str | None] = "storage"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """One at a time."""
        return [{"n_files": 1}]

    def cost(self, dims: Dims) -> Op:
        """A page of each is written."""
        n_files = dims["n_files"]
        return replace(new_files(self.name, n_files=n_files), bytes_written=float(n_files * ALIGNMENT))

    def prepare(self, dims: Dims, context: KernelContext) -> AbstractContextManager[Callable[[], None]]:
        """Give a call that makes files of new names in a folder that goes with them."""
        return self._prepared(dims, context)

    @contextlib.contextmanager
    def _prepared(self, dims: Dims, context: KernelContext) -> Iterator[Callable[[], None]]:
        page, numbers = _page(context.seed), itertools.count()
        with _folder(context) as folder:

            def call() -> None:
                for number in itertools.islice(numbers, dims["n_files"]):
                    _make(folder / f"{number}.bin", page)

            yield call

    def example(self) -> Dims:
        """Two files."""
        return {"n_files": 2}

    def run(self, dims: Dims, context: KernelContext) -> Bytes:
        """Return what the files hold, uint8[n_files, page]."""
        with _folder(context) as folder:
            paths = [folder / f"{number}.bin" for number in range(dims["n_files"])]
            for path in paths:
                _make(path, _page(context.seed))
            return np.stack([np.fromfile(path, np.uint8) for path in paths])

    def reference(self, dims: Dims, context: KernelContext) -> Bytes:
        """The page, as often."""
        return np.tile(_page(context.seed), (dims["n_files"], 1))


def _page(seed: int) -> Bytes:
    page = buffers.aligned_empty((ALIGNMENT,), np.uint8)
    page[:] = np.random.default_rng(seed).integers(0, 256, len(page), np.uint8)
    return page


def _make(path: Path, page: Bytes) -> None:
    with container.replacing(path, len(page)) as file:
        file.write_at(0, page)


@contextlib.contextmanager
def _folder(context: KernelContext) -> Iterator[Path]:
    context.folder.mkdir(parents=True, exist_ok=True)
    with atomic_files.temporary_folder(context.folder, "output") as folder:
        yield folder
