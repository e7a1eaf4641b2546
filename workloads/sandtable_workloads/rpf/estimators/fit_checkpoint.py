"""Checkpoints of a fit: killed at any moment and started again, it ends with the same parameters, bit for bit.

A checkpoint is one ``.npz`` file: the arrays that the next iteration reads, and a JSON header with the history so far
and with what the fit is of. It grows beside its place and is renamed, so that the one before it stands until the new
one is whole. What it was made of (the class, its hyperparameters, a digest of the events) must be what is fitted now;
how long to fit (``max_iter``, ``tol``) and on how many threads may change.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sandtable.errors import ConfigError
from sandtable.system import atomic_files, locks
from sandtable_workloads.rpf.estimators.fit_loop import FitLoop, State, restore_state, state_arrays

HEADER = "header"
SCHEMA = 1
# hyperparameters that say how far and how fast to fit, and change nothing of any one iteration
OF_THE_RUN = frozenset({"max_iter", "tol", "n_threads", "n_ranks", "warm_start"})

Arrays = Mapping[str, npt.NDArray[Any]]


# --- files of named arrays ---------------------------------------------------------------------------------


def write_arrays(path: Path, header: Mapping[str, Any], arrays: Arrays) -> None:
    """Write arrays and a JSON header to one ``.npz`` file, beside its name first and then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    part, handle = atomic_files.create_part(path)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **{HEADER: text}, **arrays)
            file.flush()
            os.fsync(handle)
            part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_arrays(path: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return the header and the arrays that `write_arrays` wrote; each array's CRC-32 is checked.

    Raises:
        ConfigError: the file cannot be read, is damaged, or is none of ours.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        header = json.loads(arrays.pop(HEADER).tobytes())
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, TypeError) as error:
        cause = str(error).partition(".")[0]
        raise ConfigError(f"is damaged, or was not written by a fit ({cause})", file=str(path)) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}", file=str(path)) from None
    return header, arrays


def digest(*arrays: npt.NDArray[Any]) -> str:
    """Return 32 hexadecimal digits that stand for the types, shapes and bytes of arrays."""
    made = hashlib.blake2b(digest_size=16)
    for array in arrays:
        made.update(f"{array.dtype.str}{array.shape}".encode())
        made.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.size else b"")
    return made.hexdigest()


# --- what a fit is of --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FitIdentity:
    """What two fits must have in common for one to go on where the other was killed.

    Attributes:
        model: Class of the estimator.
        data: `digest` of events, users, items and edges.
        parameters: Its hyperparameters, as `get_params` returns them.
    """

    model: str
    data: str
    parameters: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return it as a header keeps it, without what may change between the two."""
        # a mapping as its two columns: names in JSON are texts only
        kept = {
            name: [list(value), list(value.values())] if isinstance(value, Mapping) else value
            for name, value in sorted(self.parameters.items())
            if name not in OF_THE_RUN
        }
        all_of_it = {"model": self.model, "data": self.data, "parameters": kept}
        made: dict[str, Any] = json.loads(json.dumps(all_of_it, default=_plain))
        return made

    def refusal(self, stored: Mapping[str, Any]) -> str | None:
        """Say why a fit of this cannot go on from what is ``stored`` of another, or None if it can."""
        mine = self.as_json()
        if stored.get("model") != mine["model"]:
            return f"is of a {stored.get('model')}, and this is a fit of {mine['model']}"
        before, now = stored.get("parameters", {}), mine["parameters"]
        changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        if changed:
            pairs = ", ".join(f"{name}={before.get(name)!r}, now {now.get(name)!r}" for name in changed)
            return f"was made with other hyperparameters ({pairs})"
        return None if stored.get("data") == mine["data"] else "was made of other events, users, items or edges"


def _plain(value: Any) -> Any:
    """Return what stands in JSON for a hyperparameter that is no plain value."""
    if isinstance(value, np.generic):
        return value.item()
    return digest(value) if isinstance(value, np.ndarray) else repr(value)


# --- when to write, and what to go on from ------------------------------------------------------------------


@dataclass(kw_only=True)
class FitCheckpoint:
    """Where a fit is kept, and how often: pass it, or just its path, as ``fit(..., checkpoint=...)``.

    Attributes:
        path: The file, ``.npz``; a second fit with the same one is refused while the first runs.
        every_iterations: Write after so many iterations, whatever the time.
        every_s: Write when so many seconds have passed since the last one, at the end of an iteration.
    """

    path: Path
    every_iterations: int | None = None
    every_s: float = 60.0
    _written_s: float = field(default_factory=time.monotonic, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        if self.every_iterations is not None and self.every_iterations < 1:
            raise ConfigError(f"every_iterations is {self.every_iterations}: at least 1")
        if not self.every_s >= 0:
            raise ConfigError(f"every_s is {self.every_s}: 0 or more seconds")

    @classmethod
    def of(cls, given: FitCheckpoint | str | Path | None) -> FitCheckpoint | None:
        """Return what was given to a fit as a checkpoint; a path alone is written once a minute."""
        return given if given is None or isinstance(given, FitCheckpoint) else cls(path=Path(given))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other fits from this file while inside, and sweep up what a killed one left beside it.

        Raises:
            InUse: another process fits with it.
        """
        with locks.claimed(self.path, "fits with this checkpoint"):
            atomic_files.sweep_parts_of(self.path)
            self._written_s = time.monotonic()
            yield

    def resume(self, identity: FitIdentity) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]] | None:
        """Return history and arrays of the fit to go on with, None if there is no checkpoint yet.

        Raises:
            ConfigError: it is damaged, or of something else.
        """
        if not self.path.exists():
            return None
        header, arrays = read_arrays(self.path)
        if header.get("schema") != SCHEMA or "identity" not in header:
            raise ConfigError("is no checkpoint of a fit: give another name", file=str(self.path))
        refused = identity.refusal(header["identity"])
        if refused is not None:
            raise ConfigError(f"{refused}: remove it to begin anew, or give another name", file=str(self.path))
        return header["history"], arrays

    def due(self, n_done: int) -> bool:
        """Whether to write after ``n_done`` iterations."""
        by_count = self.every_iterations is not None and n_done % self.every_iterations == 0
        return by_count or time.monotonic() - self._written_s >= self.every_s

    def keep(self, identity: Mapping[str, Any], history: Mapping[str, Any], arrays: Arrays) -> None:
        """Write what the next iteration reads, and the history so far; identity and history are plain JSON."""
        header = {"schema": SCHEMA, "identity": dict(identity), "history": dict(history)}
        write_arrays(self.path, header, arrays)
        self._written_s = time.monotonic()

    @contextlib.contextmanager
    def ending(self, keep: Callable[[], None]) -> Iterator[Callable[[int], None]]:
        """Give what is to be called after each iteration with how many are done: it calls ``keep`` where that is due.

        Inside, whoever interrupts or ends the process waits for the iteration under way, whose half is of no use, and
        the fit is kept before it ends. A second time nothing is waited for.
        """
        asked: list[int] = []

        def note(number: int, frame: Any) -> None:
            if asked:
                raise KeyboardInterrupt
            asked.append(number)

        def after(n_done: int) -> None:
            if asked or self.due(n_done):
                keep()
            if asked:
                ended = KeyboardInterrupt()
                ended.add_note(f"the fit is kept in {self.path}, and the same command goes on there")
                raise ended

        with _signals_to(note):
            yield after

    def settings(self) -> dict[str, Any]:
        """Return what makes another one like it, as JSON."""
        return {"path": str(self.path), "every_iterations": self.every_iterations, "every_s": self.every_s}


@contextlib.contextmanager
def _signals_to(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Let ``handler`` take what interrupts the process while inside; only the main thread may, and is waited for."""
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    # whoever is killed at once anyway, or ignores it, stays so
    mine = [number for number in numbers if signal.getsignal(number) is signal.default_int_handler]
    try:
        for number in mine:
            signal.signal(number, handler)
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.default_int_handler)


@contextlib.contextmanager
def kept(
    checkpoint: FitCheckpoint | str | Path | None, identity: Callable[[], FitIdentity], loop: FitLoop, state: State
) -> Iterator[None]:
    """Let ``loop`` go on from its checkpoint, if there is one, and keep it: now and then, and at its end.

    Args:
        checkpoint: Where; None: nowhere, and nothing happens.
        identity: Gives what the fit is of.
        loop: Its history is taken up, its ``after`` taken.
        state: What its iterations change in place.

    Raises:
        ConfigError: a checkpoint that is damaged, or of another fit.
        InUse: another process fits with it.
    """
    keeper = FitCheckpoint.of(checkpoint)
    if keeper is None:
        yield
        return
    mine = identity()

    def keep() -> None:
        history = {"elbo": loop.elbo, "held_out": loop.held_out_scores}
        keeper.keep(mine.as_json(), history, state_arrays(state))

    with keeper.held():
        found = keeper.resume(mine)
        if found is not None:
            loop.elbo, loop.held_out_scores = found[0]["elbo"], found[0]["held_out"]
            restore_state(state, found[1])
        with keeper.ending(keep) as after:
            loop.after = lambda elbo: after(len(elbo))
            yield
        keep()
