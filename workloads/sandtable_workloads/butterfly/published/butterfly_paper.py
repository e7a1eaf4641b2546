"""The networks of the butterfly paper (arXiv 1906.02256), with their millions of multiply-adds and top-1 on ImageNet.

The file ships with the package: the figures of a paper. Scored are the multiply-adds of the lists of layers that
`butterfly_vision` plans and builds, counted as the paper counts them; accuracy is not predicted, only quoted. Dense and
butterfly networks of one ``claim`` are those that the paper sets side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from sandtable.published.adapter import Adapter, Outcome, Scored, Skipped
from sandtable.published.rows import Row, file_of, read_rows
from sandtable_workloads.butterfly.networks import Network, network_named

MEGA = 1e6
# the paper prints whole millions
ROUNDING = 0.5 * MEGA


@dataclass(frozen=True, slots=True)
class PaperNetwork:
    """One network of the paper: how to build it, its multiply-adds and its top-1 accuracy as printed."""

    claim: str
    network: str
    width: float
    resolution: int
    structure: str
    multiply_accumulates: float
    top1_frac: float

    @property
    def label(self) -> str:
        """Short name, as ``1.0@96``."""
        return f"{self.width}@{self.resolution}"

    def layers(self) -> Network:
        """Return it as a list of layers."""
        return network_named(self.network, width=self.width, resolution=self.resolution, structure=self.structure)

    @classmethod
    def of(cls, row: Row) -> PaperNetwork | None:
        """Return the network of a row, None where the paper does not say how wide it is.

        Raises:
            MalformedRow: a cell that is no number.
        """
        width, resolution = row.number("width"), row.number("resolution")
        mflops, top1 = row.number("mflops"), row.number("top1")
        if width is None or resolution is None or mflops is None or top1 is None:
            return None
        names = row.text("claim"), row.text("network")
        return cls(*names, width, int(resolution), row.text("structure"), mflops * MEGA, top1 / 100)


class ButterflyPaper(Adapter):
    """Multiply-adds of the paper's networks, from their layers."""

    name: ClassVar[str] = "butterfly_paper"
    title: ClassVar[str] = "Butterfly Transform: multiply-adds of MobileNets and ShuffleNetV2"
    metrics: ClassVar[tuple[str, ...]] = ("multiply_accumulates",)

    def predict(self, row: Row) -> Outcome:
        """Count one row's network."""
        found = PaperNetwork.of(row)
        if found is None:
            return Skipped("the sizes of its layers are not published")
        counted = found.layers().multiply_accumulates(as_paper=True)
        return [
            Scored(
                row_id=f"line {row.line}",
                metric=self.metrics[0],
                unit="",
                predicted=counted,
                low=counted - ROUNDING,
                high=counted + ROUNDING,
                measured=found.multiply_accumulates,
                label=f"{found.network} {found.label} {found.structure}",
                group=found.structure,
            )
        ]


@lru_cache(maxsize=1)
def paper_networks() -> Sequence[PaperNetwork]:
    """Return the networks of the shipped file that can be built, in its order."""
    path = file_of(Path(__file__).parent / "data", ButterflyPaper.name)
    assert path is not None
    return tuple(found for row in read_rows(path) if (found := PaperNetwork.of(row)) is not None)
