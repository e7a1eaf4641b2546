"""Collectives over a group of devices: rings, trees, reduction in the switch, and direct reads of peers.

The law takes the quickest of the algorithms that a library has, as such libraries do by a model of their own
(NVIDIA/nccl src/graph/tuning.cc), and never looks at which library it is: constants say what it reaches.

``n_bytes`` of a demand is the whole buffer S: what every rank holds before an all-reduce or a reduce-scatter, or after
an all-gather; what every rank sends to all ranks together, itself included, in an all-to-all; the message of a
send/recv. Of ``n_ranks`` ranks n, ``ranks_per_machine`` g of this group sit in one machine, so that n / g machines
take part. Groups that work at the same time through one machine's adapters each have their ranks' share of them: the
bandwidth of a link between machines is per device (see `LinkSheet`), and this group's g devices bring g shares.

Within a machine, with R the rate that one rank reaches and h one hop, the time of the processors at both ends and half
of the round trip that reading a word of a peer takes:

- ring: all-reduce takes 2 (n - 1) steps and moves 2 (n - 1) / n S past each rank, reduce-scatter and all-gather half
  of both. Small messages use a protocol with a flag beside every word (half the rate, one hop a step), large ones
  send whole chunks (full rate, several hops a step). In its first step a rank only sends and in its last one only
  receives, which costs the more the fewer steps there are: reduce-scatter by two does nothing else.
- reduction in the switch, where it can: S (1 + 1/n) past each rank, whatever n.
- direct: every rank reads its peers. One shot reads (n - 1) S at one barrier, two shots 2 (n - 1) / n S at two.
- all-to-all and send/recv: messages to all peers at once; small ones are bound by one window a hop and peer.

On links that meet in the host, a few, a pair at least, read each other's memory; what more exchange crosses the host,
whose hubs pass less than a fast link could.

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
    beside: FloatArray
    hub_rate: FloatArray
    across_rate: float
    turning: float
    launch: float
    inside: FloatArray
    across: float
    chunk_inside: FloatArray
    chunk_across: float
    given: Constants

    @classmethod
    def of(cls, sheet: LinkSheet, constants: Constants, columns: Columns) -> Group:
        n, local = columns.n_ranks, np.minimum(columns.n_ranks, columns.ranks_per_machine)
        given = sheet.given(FITTED_AS)
        ends = given["chip_slower"] * constants["hop_s"]
        hop = np.full_like(n, ends + sheet.within_latency_s / 2)
        return cls(
            n_bytes=columns.n_bytes,
            n=n,
            local=local,
            machines=np.ceil(n / local),
            inside_rate=_inside_rate(sheet, constants, local),
            beside=columns.beside,
            hub_rate=_hub_rate(sheet, local, columns.beside),
            across_rate=min(given["adapter_gain"] * constants["bandwidth_frac"], given["adapter_most"])
            * sheet.between_bytes_per_s,
            turning=1 / constants["pair_frac"] - 1,
            launch=given["chip_slower"] * constants["launch_s"],
            inside=hop,
            across=ends + sheet.between_latency_s + given["proxy_s"],
            chunk_inside=given["chunk_hops"] * hop,
            chunk_across=ends + sheet.between_latency_s + given["proxy_chunk_s"],
            given=given,
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

    def moving(
        self, inside_bytes: FloatArray, across_bytes: FloatArray, idle: FloatArray | float = 0.0
    ) -> FloatArray:
        """Return the time that bytes past one rank and through a machine's adapters need at full rate.

        ``idle`` is the share of steps in which a rank only sends or only receives.
        """
        across = np.where(self.crosses, across_bytes / (self.local * self.across_rate), 0.0)
        turned = inside_bytes * (1 + self.turning * idle)
        # what one group leaves idle of the way between hubs, others use
        passed = np.where(self.beside > 1, inside_bytes, turned)
        return np.asarray(np.maximum(np.maximum(turned / self.inside_rate, passed / self.hub_rate), across))


def _inside_rate(sheet: LinkSheet, constants: Constants, local: FloatArray) -> FloatArray:
    """Return the rate per rank within a machine."""
    rated = constants["bandwidth_frac"] * sheet.within_bytes_per_s
    rate = np.minimum(rated, constants["bandwidth_frac"] * sheet.peer_bytes_per_s * np.maximum(local - 1, 1))
    # one rank in a machine sends nothing inside it
    return np.asarray(np.where(local > 1, rate, np.inf))


def _hub_rate(sheet: LinkSheet, local: FloatArray, beside: FloatArray) -> FloatArray:
    """Return what each rank gets between the host's hubs; infinite where a group stays in one.

    Groups that interleave reach over several hubs where one of as many neighbours stays in its own, and share the way.
    """
    reaches = (local > 1) & (local * beside > sheet.hub_devices)
    rate = np.minimum(sheet.hub_bytes_per_s, sheet.between_hubs_bytes_per_s / beside)
    return np.asarray(np.where(reaches, rate, np.inf))


class Collective(Operator[LinkSheet]):
    """``t = max(call, launch + steps * hop + bytes past a rank / rate)``, the least over algorithms; see the module.

    ``bandwidth_frac`` is the share of the link's rate that a rank reaches which sends and receives at once, and
    ``pair_frac`` what is left of it where each step does only one of both. ``launch_s`` is the start of a kernel and
    ``hop_s`` what the processors at both ends add to a link's latency from one rank to the next. ``call_s`` is the
    host's time for one call: where calls follow each other it hides what the device needs, or the other way round;
    one who only sends does not wait for the slowest caller. Starting and hopping are counts of clocks, as a link's
    ``chip_slower`` says, and a host calls by the speed of one of its cores, as ``host_slower`` does.
    All-reduces up to ``direct_bytes`` are done by reading peers directly; a byte means that the software never does so.
    A subclass says how its algorithms move the buffer, and ``turns``: how often a ring passes it on, in units of
    (n - 1) / n, each of which takes n - 1 steps.
    """

    resource: ClassVar[Resource] = "network"
    Shape: ClassVar[type[CollectiveShape]] = CollectiveShape
    fitted_as: ClassVar[str] = FITTED_AS
    # of published timings left out, see `Scatter`
    scatter: ClassVar[Scatter] = Scatter(own=0.1, siblings=0.23, per_doubling=0.13, new_kind=0.31)
    # how often a link was timed says how many libraries and shapes were, not how much it tells of others
    devices_weigh_alike: ClassVar[bool] = True
    turns: ClassVar[float] = 1.0
    waits: ClassVar[bool] = True
    given: ClassVar[tuple[str, ...]] = (
        "flagged_rate",
        "flagged_rate_across",
        "chunk_hops",
        "proxy_s",
        "proxy_chunk_s",
        "direct_hops",
        "switch_hops",
        "switch_rate",
        "message_hops",
        "handshake_hops",
        "window_bytes",
        "adapter_gain",
        "adapter_most",
        "rated_ranks",
        "chip_slower",
        "host_slower",
    )
    constants: ClassVar[tuple[Constant, ...]] = (
        Constant(name="bandwidth_frac", typical=0.72, low=0.02, high=1.0),
        Constant(name="pair_frac", typical=0.7, low=0.2, high=1.0),
        Constant(name="launch_s", typical=5e-6, low=1e-7, high=1e-3),
        Constant(name="hop_s", typical=4e-7, low=1e-8, high=1e-2),
        Constant(name="call_s", typical=3e-5, low=1e-7, high=1e-2),
        # the limits that serving frameworks set are about 8 MiB, below or including it
        Constant(name="direct_bytes", typical=1.0, low=0.5, high=2.0**40, starts=(6 * 2.0**20, 12 * 2.0**20)),
    )

    def seconds(self, device: LinkSheet, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `Operator.seconds`."""
        group = Group.of(device, constants, columns)
        called = group.given["host_slower"] * constants["call_s"] if self.waits else 0.0
        busy = np.maximum(called, group.launch + self.busy_s(group, device, constants))
        return np.asarray(np.where(group.n > 1, busy, 0.0))

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
        moving = group.moving(
            each * (group.n - 1), group.local * each * (group.n - group.local), 1 / np.maximum(group.n - 1, 1)
        )
        return _messages(group, each, moving)


class SendRecv(Collective):
    """A message from one rank to its peer."""

    name: ClassVar[str] = "send_recv"
    waits: ClassVar[bool] = False

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
    passed = turns * group.n_bytes * (n - 1) / n
    moving = group.moving(passed, passed, 1 / (turns * np.maximum(n - 1, 1)))
    flags = inside_steps * group.inside + across_steps * group.across + moving / group.flagged
    chunks = inside_steps * group.chunk_inside + across_steps * group.chunk_across + group.fill + moving
    return np.minimum(flags, chunks)


def _tree(group: Group) -> FloatArray:
    """Up to a root and down again; two machines exchange the buffer once, more of them pass it up and down."""
    depth = np.log2(np.maximum(group.machines, 1))
    chain = 2 * (group.local - 1)
    passed = np.where(group.machines > 2, 2.0, 1.0) * group.n_bytes
    moving = group.moving(2 * group.n_bytes * (group.n - 1) / group.n, passed)
    flags = chain * group.inside + 2 * depth * group.across + moving / group.flagged
    chunks = chain * group.chunk_inside + 2 * depth * group.chunk_across + group.fill + moving
    return np.where(group.crosses, np.minimum(flags, chunks), np.inf)


def _in_switch(group: Group, constants: Constants, sheet: LinkSheet) -> FloatArray:
    rate = group.given["switch_rate"] * constants["bandwidth_frac"] * sheet.within_bytes_per_s
    busy = group.given["switch_hops"] * group.inside + group.n_bytes * (1 + 1 / group.n) / rate
    return np.where((group.n > 2) & ~group.crosses, busy, np.inf)


def _direct(group: Group, constants: Constants, sheet: LinkSheet) -> FloatArray:
    """Kernels that read their peers' memory: within a machine, and over links that meet in the host only by pairs."""
    n, n_bytes, hops = group.n, group.n_bytes, group.given["direct_hops"] * group.inside
    idle = 1 / (2 * np.maximum(n - 1, 1))
    one = hops + group.moving((n - 1) * n_bytes, n_bytes, idle)
    two = 2 * hops + group.moving(2 * (n - 1) / n * n_bytes, n_bytes, idle)
    served = (n_bytes <= constants["direct_bytes"]) & (n <= (2 if sheet.shared else group.given["rated_ranks"]))
    return np.where(served & ~group.crosses, np.minimum(one, two), np.inf)


def _messages(group: Group, each: FloatArray, moving: FloatArray) -> FloatArray:
    """One message of ``each`` bytes to each peer, all at once, which takes ``moving`` seconds at full rate."""
    hop = np.where(group.crosses, group.across, group.inside)
    handshake = np.where(group.crosses, group.chunk_across, group.given["handshake_hops"] * group.inside)
    windows = np.maximum(each / group.given["window_bytes"] * group.inside, moving / group.flagged)
    flags = group.given["message_hops"] * hop + windows
    return np.minimum(flags, handshake + moving)
