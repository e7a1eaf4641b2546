"""What a user may choose about fitting a Poisson factorization to events with times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from sandtable.hardware import DTYPE_BYTES, Frozen
from sandtable_kernels.poisson import poisson_law

Variant = Literal["pf", "hpf", "hrpf", "srpf", "drpf", "dsrpf", "iirpf", "xiirpf"]
Features = Literal["weekdays_and_hours", "hours"]
Precision = Literal["float32", "float64"]
# variants without excitation, by followed users, by the clock, and between items
STATIC = ("pf", "hpf")
SOCIAL = ("srpf", "dsrpf")
DYNAMIC = ("drpf", "dsrpf")
BETWEEN = ("iirpf", "xiirpf")
# pairs of a user and an item for each event, where nobody says how many there are
USUAL_PAIRS_FRAC = 0.4


class Rpf(Frozen):
    """Parameters of a fit, and the data that stands for a user's own: drawn at random, with exactly these counts.

    Attributes:
        variant: Static (``pf``, ``hpf``), self-exciting (``hrpf``), social (``srpf``), with factors that follow the
            clock (``drpf``, ``dsrpf``), or with items that excite others by factors (``iirpf``) or clusters
            (``xiirpf``).
        users, items, events: Of the data.
        pairs: Different pairs of a user and an item among the events; 0.4 times the events if not given.
        components: Factors of a user and an item, K.
        followees: Of ``srpf`` and ``dsrpf``: whom a user follows, on average.
        features: Of ``drpf`` and ``dsrpf``: what factors follow, ``weekdays_and_hours`` (31 features of a week, two at
            once) or ``hours`` (24 of a day).
        clusters: Of ``xiirpf``: clusters of items.
        item_exponent: Of the power law of the items' popularity; 0 for equal ones.
        precision: Element type of factors.
        threads: CPU threads, of all ranks together; one per core of the machine if not given.
        ranks: Processes that share the users and add up their items' counts once an iteration.
        steps: Timed iterations.
        warmup_steps: Iterations before those, not timed.
        iterations_to_converge: Of a whole fit; what calibration runs of the variant took if not given.
    """

    also_called: ClassVar[Mapping[str, str]] = {
        "model": "variant",
        "method": "variant",
        "n_users": "users",
        "n_items": "items",
        "n_events": "events",
        "nnz": "pairs",
        "n_pairs": "pairs",
        "k": "components",
        "n_components": "components",
        "factors": "components",
        "rank": "components",
        "dtype": "precision",
        "n_threads": "threads",
        "num_threads": "threads",
        "workers": "ranks",
        "processes": "ranks",
        "iterations": "steps",
        "max_iter": "iterations_to_converge",
        "degree": "followees",
        "clock": "features",
        "n_clusters": "clusters",
        "zipf": "item_exponent",
    }

    variant: Variant = "hrpf"
    users: int = Field(default=20_000, ge=1, le=1 << 31)
    items: int = Field(default=5_000, ge=1, le=1 << 31)
    events: int = Field(default=1_000_000, ge=1, le=1 << 40)
    pairs: int | None = Field(default=None, ge=1, le=1 << 40)
    components: int = Field(default=20, ge=1, le=4096)
    followees: float = Field(default=8.0, ge=0, le=100_000)
    features: Features = "weekdays_and_hours"
    clusters: int = Field(default=10, ge=1, le=4096)
    item_exponent: float = Field(default=1.0, ge=0, le=4)
    precision: Precision = "float32"
    threads: int | None = Field(default=None, ge=1, le=4096)
    ranks: int = Field(default=1, ge=1, le=4096)
    steps: int = Field(default=10, ge=1, le=1_000_000)
    warmup_steps: int = Field(default=2, ge=0, le=1_000_000)
    iterations_to_converge: float | None = Field(default=None, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _belongs_together(self) -> Rpf:
        most = min(self.events, self.users * self.items)
        if self.pairs is not None and self.pairs > most:
            raise ValueError(f"pairs: there are at most {most}, as many as events and as users times items")
        if self.ranks > self.users:
            raise ValueError(f"ranks: each needs a user of its own, and there are {self.users}")
        if self.social and self.followees > self.users - 1:
            raise ValueError(f"followees: nobody follows themselves, and there are {self.users} users")
        return self

    @property
    def n_pairs(self) -> int:
        """Different pairs of a user and an item."""
        usual = max(1, round(USUAL_PAIRS_FRAC * self.events))
        return self.pairs or min(usual, self.users * self.items)

    @property
    def n_params(self) -> int:
        """Factors, of each feature of the clock, and what excites: one a user and an edge, and between items."""
        from sandtable_workloads.rpf.rpf_cells import clock_of

        excited = self.users + self.n_edges if self.excites else 0
        between = self.users + self.n_clusters**2 if self.between else 0
        return (self.users + self.items) * self.components * clock_of(self).features + excited + between

    @property
    def n_edges(self) -> int:
        """Who follows whom, one each."""
        return round(self.users * self.followees) if self.social else 0

    @property
    def item_bytes(self) -> float:
        """Bytes of a factor."""
        return DTYPE_BYTES[self.precision]

    @property
    def excites(self) -> bool:
        """Whether earlier events raise the rate of later ones."""
        return self.variant not in STATIC

    @property
    def kind(self) -> int:
        """Which pass over users the variant takes: see `sandtable_kernels.poisson.poisson_law.KINDS`."""
        if self.social:
            return poisson_law.SOCIAL
        return poisson_law.EXCITED if self.excites else poisson_law.USERS

    @property
    def social(self) -> bool:
        """Whether users excite those who follow them."""
        return self.variant in SOCIAL

    @property
    def dynamic(self) -> bool:
        """Whether factors follow the clock."""
        return self.variant in DYNAMIC

    @property
    def between(self) -> bool:
        """Whether events of an item excite those of others."""
        return self.variant in BETWEEN

    @property
    def n_clusters(self) -> int:
        """Clusters of items; 0 where these are not what excites."""
        return min(self.clusters, self.items) if self.variant == "xiirpf" else 0
