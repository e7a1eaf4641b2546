"""The loop around iterations of variational inference: when it stops, what it reports, and what it keeps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sandtable_kernels.poisson.gamma_rows import GammaRows

State = dict[str, GammaRows]
Arrays = dict[str, NDArray[Any]]


class Iteration(NamedTuple):
    """What a fit says after each iteration: ``elbo`` of the parameters before it, seconds since the start, and waited.

    ``waited_s`` is what the iteration waited for other ranks.
    """

    number: int
    most: int
    elbo: float
    held_out: float | None
    seconds: float
    waited_s: float = 0.0


def state_arrays(state: State) -> Arrays:
    """Return all arrays of a state, named ``theta.shape`` and so on."""
    return {f"{name}.{part}": array for name, rows in state.items() for part, array in rows.arrays().items()}


def restore_state(state: State, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Take back what `state_arrays` gave."""
    for name, rows in state.items():
        parts = {key.split(".", 1)[1]: value for key, value in arrays.items() if key.split(".", 1)[0] == name}
        rows.restore(parts)


@dataclass
class FitLoop:
    """Iterate until the ELBO, or the held-out likelihood where there is one, changes by less than ``tol`` of itself.

    Attributes:
        iterate: Improves the state in place; returns the ELBO of what it was.
        most: Iterations at most.
        tol: Relative change at which to stop.
        held_out: Gives the held-out log-likelihood of the state as it is, every ``every`` iterations.
        progress: Told of each iteration.
        after: Called after each iteration with the ELBOs.
        elbo: ELBOs so far.
    """

    iterate: Callable[[], float]
    most: int
    tol: float
    held_out: Callable[[], float] | None = None
    every: int = 5
    progress: Callable[[Iteration], None] | None = None
    after: Callable[[list[float]], None] | None = None
    elbo: list[float] = field(default_factory=list)
    held_out_scores: list[float] = field(default_factory=list)

    def run(self) -> bool:
        """Iterate; return whether it converged."""
        begin = time.monotonic()
        if self._had_settled():
            return True
        while len(self.elbo) < self.most:
            self.elbo.append(self.iterate())
            score = self._held_out_now()
            if self.progress is not None:
                self.progress(Iteration(len(self.elbo), self.most, self.elbo[-1], score, time.monotonic() - begin))
            if self.after is not None:
                self.after(self.elbo)
            if self._settled(score):
                return True
        return False

    def _held_out_now(self) -> float | None:
        if self.held_out is None or len(self.elbo) % self.every:
            return None
        self.held_out_scores.append(self.held_out())
        return self.held_out_scores[-1]

    def _had_settled(self) -> bool:
        """Whether the fit that is gone on with had converged."""
        scored = self.held_out is not None and self.elbo and len(self.elbo) % self.every == 0
        return self._settled(self.held_out_scores[-1] if scored and self.held_out_scores else None)

    def _settled(self, score: float | None) -> bool:
        """Whether the last change was small; of held-out likelihoods a fall settles as well."""
        if self.held_out is not None:
            past = self.held_out_scores
            return score is not None and len(past) > 1 and past[-1] - past[-2] < self.tol * abs(past[-2])
        past = self.elbo
        return len(past) > 1 and bool(np.abs(past[-1] - past[-2]) < self.tol * abs(past[-2]))
