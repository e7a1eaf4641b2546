"""Calibrate this host: time its kernels, fit the laws of `sandtable.model`, and say how well it repeats.

Nothing here is fitted to a workload's end-to-end time: those runs are the test.
"""

from __future__ import annotations

from collections.abc import Sequence

from sandtable.calibration.calibrated import Calibrated
from sandtable.calibration.fit import repeats
from sandtable.calibration.host_fit import fit_machine
from sandtable.calibration.host_timing import PARTS, Settings, check_parts, needs_base, observe, rounds
from sandtable.calibration.timing import Timing
from sandtable.errors import ConfigError
from sandtable.hardware import Machine, StorageFit

# beyond this, passes disagree too much for predictions at the level of ten percent
NOISY_SPREAD_FRAC = 0.25


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
    timings = [timing for round_ in rounds(settings) for timing in observe(round_)]
    machine = fit_machine(
        timings,
        settings.only,
        folder=settings.folder,
        file_bytes=settings.file_bytes,
        quick=settings.quick,
        base=base,
    )
    shown = [timing for timing in timings if "touch" not in timing.dims]
    return Calibrated(machine=machine).fitted_to(machine, shown, _warnings(machine, timings))


def _warnings(machine: Machine, timings: Sequence[Timing]) -> list[str]:
    """Say which parts of the machine did not repeat well enough to be trusted."""
    found = []
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
