"""A point of a calibration and its visits: which of them others disturbed, and whether the others agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sandtable.calibration.timing import Timing
from sandtable.demand.kernel import Dims, Kernel
from sandtable.system.contention import DISTURBED_FRAC

# calm visits that lie no further apart than this agree: what a machine does by itself between two minutes
AGREEING_FRAC = 0.3
# calm visits that a point needs to be settled, if it is visited that often at all
LEAST_CALM = 2
# a calm visit that takes more than this much longer than two that agree met something that nobody counts
FAR_FRAC = 1.0
# visits beyond those that were planned
MOST_MORE = 6


@dataclass(frozen=True, slots=True)
class Visit:
    """Seconds of each call, and which part of the time that they asked for other programs took; see `contention`.

    ``probe_s`` is what a probe of the machine took about then, where one tells of such work.
    """

    seconds: Sequence[float]
    lost_frac: float = 0.0
    probe_s: float | None = None

    @property
    def is_calm(self) -> bool:
        """Whether others left it alone."""
        return self.lost_frac <= DISTURBED_FRAC

    @property
    def median_s(self) -> float:
        """The middle call."""
        return float(np.median(self.seconds))

    def as_fast_as(self, probe_s: float) -> Visit:
        """Return the visit as it would have been while the probe took so long."""
        if self.probe_s is None:
            return self
        return replace(
            self, seconds=[seconds * probe_s / self.probe_s for seconds in self.seconds], probe_s=probe_s
        )


@dataclass(slots=True)
class Point:
    """A kernel at one point of its grid, and each time it was timed."""

    kernel: Kernel
    dims: Dims
    visits: list[Visit] = field(default_factory=list)

    @property
    def kept(self) -> list[Visit]:
        """The calm visits, or the calmest where there is none."""
        calm = [visit for visit in self.visits if visit.is_calm]
        return calm or [min(self.visits, key=lambda visit: visit.lost_frac)]

    def as_fast_as(self, probe_s: float) -> Point:
        """Return the point with all visits as they would have been while the probe took so long."""
        return replace(self, visits=[visit.as_fast_as(probe_s) for visit in self.visits])

    def is_settled(self, least_calm: int = 1) -> bool:
        """Return whether at least so many visits were calm, and two of them agree where there are two or more.

        Work of others only makes slower, so that those two are the quickest.
        """
        calm = sorted(visit.median_s for visit in self.visits if visit.is_calm)
        if len(calm) < least_calm or not calm:
            return False
        return len(calm) < LEAST_CALM or calm[1] <= calm[0] * (1 + AGREEING_FRAC)

    @property
    def timing(self) -> Timing:
        """What the fits take: the visits that are kept, without those that lie far above two that agree."""
        kept = self.kept
        if self.is_settled() and len(kept) > LEAST_CALM:
            most = sorted(visit.median_s for visit in kept)[1] * (1 + FAR_FRAC)
            kept = [visit for visit in kept if visit.median_s <= most]
        timing = Timing.of_kernel(self.kernel, self.dims, [visit.seconds for visit in kept])
        left_out = len(self.visits) - len(kept)
        return replace(timing, n_left_out=left_out, settled=self.is_settled())
