"""Calibrate this host: time its kernels, fit the laws of `sandtable.model`, and say how well it repeats.

Nothing here is fitted to a workload's end-to-end time: those runs are the test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sandtable.calibration.calibrated import Calibrated, describe
from sandtable.calibration.fit import repeats
from sandtable.calibration.host_fit import fit_machine
from sandtable.calibration.host_timing import PARTS, Observation, Settings, check_parts, needs_base, observe, rounds
from sandtable.calibration.timing import Timing
from sandtable.calibration.visits import Point
from sandtable.errors import ConfigError
from sandtable.hardware import Machine, StorageFit

# beyond this, passes disagree too much for predictions at the level of ten percent
NOISY_SPREAD_FRAC = 0.25
# a point this far from its fit, and this many times as far as they lie in the median, is timed once more; and how many
FAR_FRAC = 0.5
FAR_MEDIANS = 4.0
FAR_MOST_FRAC = 0.1
# where a machine file says what others disturbed, and how many points it names
DISTURBED = "disturbed"
N_NAMED = 3


def calibrate(settings: Settings, base: Machine | None = None) -> Calibrated:
    """Measure this machine and return it calibrated.

    Args:
        settings: What to measure, where, for how long.
        base: An earlier calibration, whose parts are kept where they are not measured again.

    Raises:
        UnknownName: ``only`` names a part that does not exist.
        ConfigError: ``only`` some parts, and no ``base`` to put them into.
        CalibrationError: too few points.
    """
    check_parts(settings.only)
    if base is None and not set(settings.only) >= set(PARTS):
        raise ConfigError(needs_base(settings.only))
    observations = [observe(round_) for round_ in rounds(settings)]
    found = _fitted(settings, base, observations)
    changed = [observation.doubt(_far(observation.points, found)) for observation in observations]
    if any(changed):
        found = _fitted(settings, base, observations)
    return found


def _far(points: Sequence[Point], found: Calibrated) -> list[Point]:
    """Return the points that lie far from what their neighbours' fit says of them, the farthest first."""
    pairs = zip(found.timings, found.fitted_s, strict=True)
    errors = {(t.kernel, describe(t.dims)): abs(math.log(fitted_s / t.seconds)) for t, fitted_s in pairs}
    limit = max(math.log1p(FAR_FRAC), FAR_MEDIANS * float(np.median(list(errors.values()))) if errors else 0.0)
    off = [errors.get((point.kernel.name, describe(point.dims)), 0.0) for point in points]
    order = sorted((i for i in range(len(points)) if off[i] > limit), key=lambda i: -off[i])
    return [points[i] for i in order[: math.ceil(FAR_MOST_FRAC * len(points))]]


def _fitted(settings: Settings, base: Machine | None, observations: Sequence[Observation]) -> Calibrated:
    timings = [timing for observation in observations for timing in observation.timings]
    machine = fit_machine(
        timings,
        settings.only,
        folder=settings.folder,
        file_bytes=settings.file_bytes,
        quick=settings.quick,
        base=base,
    )
    probes = dict(item for observation in observations for item in observation.probes.items())
    machine = machine.model_copy(update={"probe_s": {**machine.probe_s, **probes}})
    if note := disturbed(timings):
        machine = machine.model_copy(update={"environment": {**machine.environment, DISTURBED: note}})
    shown = [timing for timing in timings if "touch" not in timing.dims]
    return Calibrated(machine=machine).fitted_to(machine, shown, _warnings(machine, timings))


def _warnings(machine: Machine, timings: Sequence[Timing]) -> list[str]:
    """Say what others disturbed, and which parts of the machine did not repeat well enough to be trusted."""
    found = [note] if (note := machine.environment.get(DISTURBED)) else []
    for resource in ("storage", "memory", "compute", "network"):
        spread = repeats.repeat_spread([t for t in timings if t.op.resource == resource])
        if spread is not None and spread > NOISY_SPREAD_FRAC:
            found.append(
                f"{resource}: repeats lie {100 * spread:.0f} % apart; this machine is too noisy to trust at the level "
                "of ten percent. Close other programs and calibrate again; the intervals already include it."
            )
    fit: StorageFit | None = machine.storage.fitted
    if fit is not None and fit.cold_factor.value > 1.2:
        found.append(f"storage: a region's first touch takes {fit.cold_factor.value:.2f} times a later one")
    return found


def disturbed(timings: Sequence[Timing]) -> str:
    """Name the points that were disturbed: those timed again until calm, and those that never settled."""
    again = [timing for timing in timings if timing.settled and timing.n_left_out]
    never = [timing for timing in timings if not timing.settled]
    said = [f"{len(again)} of {len(timings)} points timed again until calm"] if again else []
    if never:
        more = ", ..." if len(never) > N_NAMED else ""
        names = ", ".join(f"{timing.kernel} {describe(timing.dims)}" for timing in never[:N_NAMED])
        said.append(
            f"{len(never)} of {len(timings)} never settled ({names}{more}): close other programs, calibrate again"
        )
    return f"this calibration was disturbed: {'; '.join(said)}" if said else ""
