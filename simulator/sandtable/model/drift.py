"""How fast a machine is now, beside what it was when it was calibrated, by short probes of its own kernels.

The speed of a shared machine moves within minutes by more than a model is off: on two cores of a virtual machine with
nothing else running, steps of training took from 0.8 to 1.35 times what they took at calibration, all alike. What
probes take now over what they took then tells of no workload: it is the state that a prediction is made for, as a
temperature would be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import geometric_mean

from sandtable.demand.op import Op

STORAGE = "storage"


@dataclass(frozen=True, slots=True)
class Drift:
    """Times of probes over those at calibration, by ``part.kernel`` as `Kernel.probes` are of them; above 1 is slower.

    A storage op drifts as the probe of its own operator, or as all of storage where it has none; whatever the host's
    processor does, memory and its processes' exchange included, as all other probes. Nothing is known of accelerators,
    and stated times stay.
    """

    ratios: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def between(cls, then_s: Mapping[str, float], now_s: Mapping[str, float]) -> Drift:
        """Compare the seconds of probes; those that are missing on a side tell nothing."""
        return cls({key: now_s[key] / then_s[key] for key in then_s if key in now_s})

    @property
    def typical(self) -> float:
        """Geometric mean over the parts, each of its probes."""
        parts: dict[str, list[float]] = {}
        for key, ratio in self.ratios.items():
            parts.setdefault(key.partition(".")[0], []).append(ratio)
        return _mean([_mean(found) for found in parts.values()])

    def of(self, op: Op) -> float:
        """Return by how much an op takes longer than the machine's constants say."""
        if op.resource == STORAGE:
            own = self.ratios.get(f"{STORAGE}.{op.operator}")
            return own or _mean([ratio for key, ratio in self.ratios.items() if _is_storage(key)])
        if op.on != "host" or op.resource == "link" or op.seconds:
            return 1.0
        return _mean([ratio for key, ratio in self.ratios.items() if not _is_storage(key)])


NO_DRIFT = Drift()


def _is_storage(key: str) -> bool:
    return key.partition(".")[0] == STORAGE


def _mean(ratios: list[float]) -> float:
    return geometric_mean(ratios) if ratios else 1.0
