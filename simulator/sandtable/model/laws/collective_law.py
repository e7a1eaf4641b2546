"""Collectives over a group of devices: rings, trees, reduction in the switch, and direct reads of peers.

The law takes the quickest of the algorithms that a library has, as such libraries do by a model of their own
(NVIDIA/nccl src/graph/tuning.cc), and never looks at which library it is: constants say what it reaches.

``n_bytes`` of a demand is the whole buffer S: what every rank holds before an all-reduce or a reduce-scatter, or after
an all-gather; what every rank sends to all ranks together, itself included, in an all-to-all; the message of a
send/recv. Of ``n_ranks`` ranks n, ``ranks_per_machine`` g of this group sit in one machine, so that n / g machines
take part. Groups that work at the same time through one machine's adapters each have their ranks' share of them: the
bandwidth of a link between machines is per device (see `LinkSheet`), and this group's g devices bring g shares.

Within a machine, with h one hop and R the rate that one rank reaches:

- ring: all-reduce takes 2 (n - 1) steps and moves 2 (n - 1) / n S past each rank, reduce-scatter and all-gather half
  of both. Small messages use a protocol with a flag beside every word (half the rate, one hop a step), large ones
  send whole chunks (full rate, several hops a step).
- reduction in the switch, where it can: S (1 + 1/n) past each rank, whatever n.
- direct: every rank reads its peers. One shot reads (n - 1) S at one barrier, two shots 2 (n - 1) / n S at two.
- all-to-all and send/recv: messages to all peers at once; small ones are bound by one window a hop and peer.

Between machines, rings pass the same bytes through the g adapters of a machine together, and a step from machine to
machine takes that link's latency on top of the software's; a tree does an all-reduce in steps logarithmic in the
number of machines.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from sandtable.demand.operator import Columns, Constant, Constants, FloatArray, Operator, Resource, Scatter
from sandtable.demand.operator_shapes import CollectiveShape, Number
from sandtable.hardware import LinkSheet

FITTED_AS = "collective"


@dataclass(frozen=True, slots=True)
class Group:
    """The group of each demand, and what its links give: rates per rank in bytes/s, latencies in seconds.

    ``inside`` and ``across`` are the hop within a machine and between machines, ``chunk_inside`` and ``chunk_across``
    the same with whole chunks.
    """

    n_bytes: FloatArray
    n: FloatArray
    local: FloatArray
    machines: FloatArray
    inside_rate: FloatArray
    across_rate: float
    launch: float
    inside: FloatArray
    across: float
    chunk_inside: FloatArray
    chunk_across: float
    given: Constants

    @classmethod
    def of(cls, sheet: LinkSheet, constants: Constants, columns: Columns) -> Group:
        n, local = columns.n_ranks, np.minimum(columns.n_ranks, columns.ranks_per_machine)
        hop, crosses, given = constants["hop_s"], n > local, sheet.given(FITTED_AS)
        return cls(
            n_bytes=columns.n_bytes,
            n=n,
            local=local,
            machines=np.ceil(n / local),
            inside_rate=_inside_rate(sheet, constants, local, given),
            across_rate=min(given["adapter_gain"] * constants["bandwidth_frac"], given["adapter_most"])
            * sheet.between_bytes_per_s,
            launch=constants["launch_s"],
            # constants of a group that crosses machines are those of the link between them
            inside=np.where(crosses, sheet.within_latency_s, hop),
            across=hop + sheet.between_latency_s,
            chunk_inside=np.where(
                crosses, given["chunk_latencies"] * sheet.within_latency_s, given["chunk_hops"] * hop
            ),
            given=given,
            chunk_across=given["chunk_hops_across"] * hop + sheet.between_latency_s,
        )

    @property
    def crosses(self) -> npt.NDArray[np.bool_]:
        """Whether it takes more than one machine."""
        return np.asarray(self.machines > 1)

    @property
    def flagged(self) -> FloatArray:
        """Share of the full rate with flags beside the data."""
        return np.where(self.crosses, self.given["flagged_rate_across"], self.given["flagged_rate"])

    @property
    def fill(self) -> FloatArray:
        """Time until the first chunk is under way."""
        return np.where(self.crosses, self.chunk_across, self.chunk_inside)

    def moving(self, inside_bytes: FloatArray, across_bytes: FloatArray) -> FloatArray:
        """Return the time that bytes past one rank and through a machine's adapters need at full rate."""
        across = np.where(self.crosses, across_bytes / (self.local * self.across_rate), 0.0)
        return np.asarray(np.maximum(inside_bytes / self.inside_rate, across))


def _inside_rate(sheet: LinkSheet, constants: Constants, local: FloatArray, given: Constants) -> FloatArray:
    """Return the rate per rank within a machine.

    It is between that of a pair, which is ``pair_frac`` of the whole, and the rated one, by the logarithm of the
    number of ranks: few peers do not fill a switch's link.
    """
    rated = given["rated_ranks"]
    missing = np.log2(rated / np.clip(local, 2, rated)) / np.log2(rated / 2)
    rate = constants["bandwidth_frac"] * sheet.within_bytes_per_s * constants["pair_frac"] ** missing
    if sheet.shared:
        rate = rate * (2 / np.clip(local, 2, rated)) ** (1 / given["sharing_root"])
    peers = np.maximum(local - 1, 1)
    rate = np.minimum(rate, constants["bandwidth_frac"] * sheet.peer_bytes_per_s * peers)
    # one rank in a machine sends nothing inside it
    return np.asarray(np.where(local > 1, rate, np.inf))


class Collective(Operator[LinkSheet]):
    """``t = launch + steps * hop + bytes past a rank / rate``, the least over the algorithms; see the module.

    ``bandwidth_frac`` is the share of the link's rate that each of eight ranks reaches, ``pair_frac`` what each of two
    reaches of that; ``hop_s`` is the time from one rank to the next. All-reduces up to ``direct_bytes`` are done by
    reading peers directly; a byte means that the software never does so. A subclass says how its algorithms move the
    buffer, and ``turns``: how often a ring passes it on, in units of (n - 1) / n, each of which takes n - 1 steps.
    """

    resource: ClassVar[Resource] = "network"
    Shape: ClassVar[type[CollectiveShape]] = CollectiveShape
    fitted_as: ClassVar[str] = FITTED_AS
    # of published timings left out, see `Scatter`
    scatter: ClassVar[Scatter] = Scatter(own=0.1, siblings=0.23, per_doubling=0.13, new_kind=0.31)
    turns: ClassVar[float] = 1.0
    given: ClassVar[tuple[str, ...]] = (
        "flagged_rate",
        "flagged_rate_across",
        "chunk_hops",
        "chunk_hops_across",
        "chunk_latencies",
        "direct_hops",
        "switch_hops",
        "switch_rate",
        "message_hops",
        "handshake_hops",
        "window_bytes",
        "adapter_gain",
        "adapter_most",
        "rated_ranks",
        "sharing_root",
    )
    constants: ClassVar[tuple[Constant, ...]] = (
        Constant(name="bandwidth_frac", typical=0.72, low=0.02, high=1.0),
        Constant(name="pair_frac", typical=0.85, low=0.2, high=5.0),
        Constant(name="launch_s", typical=6e-6, low=1e-7, high=1e-2),
        Constant(name="hop_s", typical=1e-6, low=1e-8, high=1e-2),
        # the limits that serving frameworks set are about 8 MiB, below or including it
        Constant(name="direct_bytes", typical=1.0, low=0.5, high=2.0**40, starts=(6 * 2.0**20, 12 * 2.0**20)),
    )

    def seconds(self, device: LinkSheet, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `Operator.seconds`."""
        group = Group.of(device, constants, columns)
        return np.asarray(np.where(group.n > 1, self.busy_s(group, device, constants), 0.0))

    @abstractmethod
    def busy_s(self, group: Group, links: LinkSheet, constants: Constants) -> FloatArray:
        """Return the time of groups of more than one rank, by the quickest algorithm, in seconds."""

    def is_empty(self, shape: CollectiveShape) -> Any:
        """One rank has nobody to talk to."""
        return np.asarray(shape.n_ranks) <= 1

    def crosses(self, shape: CollectiveShape) -> Any:
        """See `Operator.crosses`."""
        return np.asarray(shape.n_ranks) > np.asarray(shape.ranks_per_machine)

    def passed_bytes(self, shape: CollectiveShape) -> Number:
        """A rank has one of n parts of the buffer already, and needs the others, as often as a ring turns."""
        return self.turns * shape.n_bytes * (1 - 1 / shape.n_ranks)


class _Ring(Collective):
    def busy_s(self, group: Group, links: LinkSheet, constants: Constants) -> FloatArray:
        """One ring over all ranks."""
        return _ring(group, self.turns)


class ReduceScatter(_Ring):
    """The sum of all ranks' buffers, a part of it on each."""

    name: ClassVar[str] = "reduce_scatter"


class AllGather(_Ring):
    """A part of the buffer on each rank, all of it on all."""

    name: ClassVar[str] = "all_gather"


class AllReduce(Collective):
    """The sum of all ranks' buffers, on all of them."""

    name: ClassVar[str] = "all_reduce"
    turns: ClassVar[float] = 2.0

    def busy_s(self, group: Group, links: LinkSheet, constants: Constants) -> FloatArray:
        """Ring, tree, reduction in the switch, or direct reads."""
        busy = np.minimum(_ring(group, self.turns), _tree(group))
        if links.reduces:
            busy = np.minimum(busy, _in_switch(group, constants, links))
        return np.minimum(busy, _direct(group, constants, links))


class AllToAll(Collective):
    """A message from each rank to each other one."""

    name: ClassVar[str] = "all_to_all"

    def busy_s(self, group: Group, links: LinkSheet, constants: Constants) -> FloatArray:
        """A machine's ranks send to those outside it through their adapters together."""
        each = group.n_bytes / group.n
        moving = group.moving(each * (group.n - 1), group.local * each * (group.n - group.local))
        return _messages(group, each, moving)


class SendRecv(Collective):
    """A message from one rank to its peer."""

    name: ClassVar[str] = "send_recv"

    def busy_s(self, group: Group, links: LinkSheet, constants: Constants) -> FloatArray:
        """One message."""
        return _messages(group, group.n_bytes, group.moving(group.n_bytes, group.local * group.n_bytes))

    def passed_bytes(self, shape: CollectiveShape) -> Number:
        """All of the message."""
        return shape.n_bytes


def _ring(group: Group, turns: float) -> FloatArray:
    n, machines = group.n, group.machines
    across_steps = turns * (machines - 1)
    inside_steps = turns * (n - 1) - across_steps
    moving = group.moving(*[turns * group.n_bytes * (n - 1) / n] * 2)
    flags = inside_steps * group.inside + across_steps * group.across + moving / group.flagged
    chunks = inside_steps * group.chunk_inside + across_steps * group.chunk_across + group.fill + moving
    return group.launch + np.minimum(flags, chunks)


def _tree(group: Group) -> FloatArray:
    """Up to a root and down again; two machines exchange the buffer once, more of them pass it up and down."""
    depth = np.log2(np.maximum(group.machines, 1))
    chain = 2 * (group.local - 1)
    passed = np.where(group.machines > 2, 2.0, 1.0) * group.n_bytes
    moving = group.moving(2 * group.n_bytes * (group.n - 1) / group.n, passed)
    flags = chain * group.inside + 2 * depth * group.across + moving / group.flagged
    chunks = chain * group.chunk_inside + 2 * depth * group.chunk_across + group.fill + moving
    return np.where(group.crosses, group.launch + np.minimum(flags, chunks), np.inf)


def _in_switch(group: Group, constants: Constants, sheet: LinkSheet) -> FloatArray:
    rate = group.given["switch_rate"] * constants["bandwidth_frac"] * sheet.within_bytes_per_s
    busy = group.launch + group.given["switch_hops"] * group.inside + group.n_bytes * (1 + 1 / group.n) / rate
    return np.where((group.n > 2) & ~group.crosses, busy, np.inf)


def _direct(group: Group, constants: Constants, sheet: LinkSheet) -> FloatArray:
    """Kernels that read their peers' memory; the host's launch hides what the device needs, or the other way round."""
    n, n_bytes, hops = group.n, group.n_bytes, group.given["direct_hops"] * group.inside
    one = hops + (n - 1) * n_bytes / group.inside_rate
    two = 2 * hops + 2 * (n - 1) / n * n_bytes / group.inside_rate
    served = (n_bytes <= constants["direct_bytes"]) & (n <= (2 if sheet.shared else group.given["rated_ranks"]))
    busy = np.maximum(group.launch, np.minimum(one, two))
    return np.where(served & ~group.crosses, busy, np.inf)


def _messages(group: Group, each: FloatArray, moving: FloatArray) -> FloatArray:
    """One message of ``each`` bytes to each peer, all at once, which takes ``moving`` seconds at full rate."""
    hop = np.where(group.crosses, group.across, group.inside)
    handshake = np.where(group.crosses, group.chunk_across, group.given["handshake_hops"] * group.inside)
    windows = np.maximum(each / group.given["window_bytes"] * group.inside, moving / group.flagged)
    flags = group.given["message_hops"] * hop + windows
    return group.launch + np.minimum(flags, handshake + moving)
