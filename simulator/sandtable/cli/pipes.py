"""A stdout whose reader may leave before the end, as ``head`` does: what is left is for nobody, and is no error."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class Patient:
    """A text stream that goes quiet when nobody reads it any more, so that a command still ends its work."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.closed_by_reader = stream, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, while there is a reader."""
        if not self.closed_by_reader:
            try:
                return self.stream.write(text)
            except BrokenPipeError:
                self.closed_by_reader = True
        return len(text)

    def flush(self) -> None:
        """Flush, while there is a reader."""
        if not self.closed_by_reader:
            try:
                self.stream.flush()
            except BrokenPipeError:
                self.closed_by_reader = True


@contextlib.contextmanager
def patient_stdout() -> Iterator[None]:
    """Let stdout go quiet when its reader leaves, until the process ends."""
    before, patient = sys.stdout, Patient(sys.stdout)
    sys.stdout = patient
    try:
        yield
    finally:
        patient.flush()
        sys.stdout = before
        if patient.closed_by_reader:
            # what is still buffered is flushed, into nothing, when the interpreter ends
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), before.fileno())
