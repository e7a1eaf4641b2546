"""Fitted constants of operators on accelerators and CPUs: a few physical numbers per device, software and kind.

Each class belongs to one law of `sandtable.model` (``GemmFit`` to `sandtable.model.laws.gemm_law`, and so on) and
holds at
most five constants, all element types together. A device file keeps them under ``fitted.operators.<kind>.<software>``;
a stack file keeps those pooled from its devices, for a device that was never measured.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from sandtable.hardware.component import Estimate, Evidence, Frozen
from sandtable.units import Bytes, Fraction, Seconds

MOST_CONSTANTS = 5


class OperatorFit(Frozen):
    """Base of fitted constants. Every field but ``evidence`` is one constant with its 90 % interval.

    An interval without width says that the points told nothing of that constant: it is that of siblings, or typical.
    """

    evidence: Evidence

    def values(self) -> dict[str, float]:
        """Return the constants by field name, in SI units."""
        names = [name for name in type(self).model_fields if name != "evidence"]
        return {name: float(getattr(self, name).value) for name in names}


class GemmFit(OperatorFit):
    """Constants of `sandtable.model.laws.gemm_law`.

    Shares of the peak rate and of the bandwidth reached; time of a launch; time before and after the main loop of a
    tile; how many times the activations are swept to quantise them, as a multiple of what their format needs.
    """

    rate_frac: Estimate[Fraction]
    bandwidth_frac: Estimate[Fraction]
    launch_s: Estimate[Seconds]
    tile_s: Estimate[Seconds]
    quantise_passes: Estimate[float]


class AttentionFit(OperatorFit):
    """Constants of `sandtable.model.laws.attention_law`.

    Shares of the peak rate and of the bandwidth reached; time of all launches; time to begin and end a tile of
    queries; how much faster products are with keys and values narrower than the queries.
    """

    rate_frac: Estimate[Fraction]
    bandwidth_frac: Estimate[Fraction]
    launch_s: Estimate[Seconds]
    item_s: Estimate[Seconds] = Estimate[float](value=0.0, low=0.0, high=0.0)
    narrow_gain: Estimate[float] = Estimate[float](value=1.0, low=1.0, high=1.0)


class StreamFit(OperatorFit):
    """Constants of `sandtable.model.laws.memory_bound`: norms, element-wise operations, embeddings, losses, optimisers.

    ``special_s`` is the time that one unit (core, multiprocessor) takes for one exponential or the like,
    ``wait_clocks`` how many of its clocks a block of threads waits for one round trip to memory.
    """

    bandwidth_frac: Estimate[Fraction]
    launch_s: Estimate[Seconds]
    special_s: Estimate[Seconds] = Estimate[float](value=0.0, low=0.0, high=0.0)
    wait_clocks: Estimate[float] = Estimate[float](value=0.0, low=0.0, high=0.0)


class MoeFit(OperatorFit):
    """Constants of `sandtable.model.laws.experts_law`: grouped products over the experts that the tokens touch.

    Shares of the peak rate and of the bandwidth reached; time of all launches; how often routed activations pass
    through memory, as a multiple of what the kernels need, and how often those of other ranks' experts do.
    """

    rate_frac: Estimate[Fraction]
    bandwidth_frac: Estimate[Fraction]
    launch_s: Estimate[Seconds]
    passes: Estimate[float]
    idle_passes: Estimate[float]


class CollectiveFit(OperatorFit):
    """Constants of `sandtable.model.laws.collective_law` on one link.

    ``bandwidth_frac`` is the share of the link's rate that each of eight ranks reaches, ``pair_frac`` what each of two
    reaches of that; ``hop_s`` is the time from one rank to the next. All-reduces up to ``direct_bytes`` are done by
    reading peers directly; a byte means that the software never does so.
    """

    bandwidth_frac: Estimate[Fraction]
    pair_frac: Estimate[Fraction]
    launch_s: Estimate[Seconds]
    hop_s: Estimate[Seconds]
    direct_bytes: Estimate[Bytes]


class OperatorFits(Frozen):
    """Fitted constants by kind of operator, then by software."""

    gemm: dict[str, GemmFit] = Field(default_factory=dict)
    attention: dict[str, AttentionFit] = Field(default_factory=dict)
    stream: dict[str, StreamFit] = Field(default_factory=dict)
    moe: dict[str, MoeFit] = Field(default_factory=dict)
    collective: dict[str, CollectiveFit] = Field(default_factory=dict)

    def of(self, kind: str) -> Mapping[str, OperatorFit]:
        """Return the fits of one kind, by software; empty for a kind that is not fitted this way."""
        found: Mapping[str, OperatorFit] = getattr(self, kind, {})
        return found
