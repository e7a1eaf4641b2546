"""The law of collectives against closed forms: limits of rings, of switches, of trees between machines."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable.demand.operator import operators
from sandtable.hardware import LawSettings, Link, LinkSheet, library
from sandtable.model.laws.collective_law import AllReduce

LAW = AllReduce()
TYPICAL = LAW.typical()
FABRIC = LinkSheet(within_bytes_per_s=400e9, within_latency_s=1e-6)
CLUSTER = LinkSheet(
    within_bytes_per_s=400e9, within_latency_s=1e-6, between_bytes_per_s=50e9, between_latency_s=10e-6
)
GIB = float(2**30)
# what a step costs more in which a rank only sends or only receives
TURNING = 1 / TYPICAL["pair_frac"] - 1
OPS = sorted(name for name, law in operators().items() if law.resource == "network")


def seconds(
    op: str,
    n_bytes: float,
    n_ranks: float,
    per_machine: float = 8.0,
    sheet: LinkSheet = FABRIC,
    beside: float = 1.0,
    **constants: float,
) -> float:
    law = operators()[op]
    columns = law.columns((n_bytes, n_ranks, per_machine, beside))
    return float(law.seconds(sheet, {**TYPICAL, **constants}, columns, dtype="bfloat16")[0])


@pytest.mark.parametrize("op", OPS)
def test_one_rank_waits_for_nobody(op: str) -> None:
    assert seconds(op, GIB, 1) == 0


@pytest.mark.parametrize(
    ("op", "passes", "idle"),
    [
        ("all_reduce", 2 * 7 / 8, 1 / 14),
        ("reduce_scatter", 7 / 8, 1 / 7),
        ("all_gather", 7 / 8, 1 / 7),
        ("all_to_all", 7 / 8, 1 / 7),
    ],
)
def test_large_messages_reach_the_share_of_the_link(op: str, passes: float, idle: float) -> None:
    at_full_rate = passes * 64 * GIB / (TYPICAL["bandwidth_frac"] * FABRIC.within_bytes_per_s)
    assert seconds(op, 64 * GIB, 8) == pytest.approx(at_full_rate * (1 + TURNING * idle), rel=1e-3)


def test_two_take_turns_in_a_reduce_scatter_and_one_who_only_sends_does_not() -> None:
    full = TYPICAL["bandwidth_frac"] * FABRIC.within_bytes_per_s
    assert GIB / seconds("send_recv", GIB, 2) == pytest.approx(full, rel=0.02)
    assert GIB / 2 / seconds("reduce_scatter", GIB, 2) == pytest.approx(TYPICAL["pair_frac"] * full, rel=0.02)


@pytest.mark.parametrize("n_ranks", [2, 4, 8])
def test_an_all_reduce_saves_a_turn_of_its_two_halves(n_ranks: int) -> None:
    halves = seconds("reduce_scatter", GIB, n_ranks) + seconds("all_gather", GIB, n_ranks)
    idle = 1 / (n_ranks - 1)
    saved = (1 + TURNING * idle / 2) / (1 + TURNING * idle)
    assert seconds("all_reduce", GIB, n_ranks) / halves == pytest.approx(saved, rel=0.01)


def test_a_reducing_switch_moves_little_more_than_the_buffer_once() -> None:
    switch = LinkSheet(within_bytes_per_s=400e9, within_latency_s=1e-6, reduces=True)
    ring, reduced = seconds("all_reduce", 8 * GIB, 8), seconds("all_reduce", 8 * GIB, 8, sheet=switch)
    assert reduced / ring == pytest.approx((1 + 1 / 8) / 0.8 / (2 * 7 / 8 * (1 + TURNING / 14)), rel=0.01)
    assert seconds("reduce_scatter", GIB, 8, sheet=switch) == seconds("reduce_scatter", GIB, 8)


def test_a_step_takes_half_of_the_links_round_trip() -> None:
    far = LinkSheet(within_bytes_per_s=400e9, within_latency_s=3e-6)
    more = seconds("all_reduce", 8.0, 8, sheet=far, call_s=1e-7) - seconds("all_reduce", 8.0, 8, call_s=1e-7)
    assert more == pytest.approx(14 * 1e-6, rel=0.01)


def link_named(name: str) -> Link:
    link = library.load_file(library.device_files("link")[name], "link")
    assert isinstance(link, Link)
    return link


def slower(**settings: float) -> LinkSheet:
    return replace(FABRIC, laws={"collective": LawSettings(settings=settings)})


def test_a_chip_at_half_the_clock_starts_and_hops_in_twice_the_time_and_moves_bytes_as_fast() -> None:
    half = slower(chip_slower=2)
    steps = 2 * 7
    more = seconds("all_reduce", 8, 8, sheet=half, call_s=1e-7) - seconds("all_reduce", 8, 8, call_s=1e-7)
    assert more == pytest.approx(TYPICAL["launch_s"] + steps * TYPICAL["hop_s"], rel=1e-3)
    assert seconds("all_reduce", 64 * GIB, 8, sheet=half) == pytest.approx(
        seconds("all_reduce", 64 * GIB, 8), rel=1e-3
    )


def test_a_slower_host_takes_longer_for_what_waits_for_its_calls_and_for_nothing_else() -> None:
    slow = slower(host_slower=1.5)
    assert seconds("all_reduce", 8, 2, sheet=slow) == pytest.approx(1.5 * TYPICAL["call_s"])
    assert seconds("all_reduce", GIB, 2, sheet=slow) == seconds("all_reduce", GIB, 2)
    assert seconds("send_recv", 8, 2, sheet=slow) == seconds("send_recv", 8, 2)


def test_between_machines_the_chips_are_those_within() -> None:
    within, network = link_named("nvlink3"), link_named("infiniband_hdr200")
    alone, across = LinkSheet.of(within), LinkSheet.of(within, network, 8)
    assert across.given("collective")["chip_slower"] == alone.given("collective")["chip_slower"] > 1


def test_the_hosts_hubs_bound_more_than_a_pair() -> None:
    pcie = LinkSheet(63e9, 2e-6, hub_bytes_per_s=25e9, shared=True)
    full = TYPICAL["bandwidth_frac"] * 63e9
    assert GIB / seconds("all_reduce", GIB, 2, sheet=pcie) == pytest.approx(full / (1 + TURNING / 2), rel=0.01)
    bus = 2 * 3 / 4 * GIB / seconds("all_reduce", GIB, 4, sheet=pcie)
    assert bus == pytest.approx(25e9 / (1 + TURNING / 6), rel=0.01)


def test_groups_that_interleave_share_the_way_between_hubs() -> None:
    """Eight devices behind two hubs: two neighbouring fours stay inside, two interleaved ones and four pairs do not."""
    pcie = LinkSheet(31e9, 2e-6, hub_bytes_per_s=12.5e9, hub_devices=4, between_hubs_bytes_per_s=16e9, shared=True)
    full = TYPICAL["bandwidth_frac"] * 31e9
    own = 3 / 4 * GIB / seconds("all_gather", GIB, 4, sheet=pcie)
    assert own == pytest.approx(full / (1 + TURNING / 3), rel=0.01)
    for n_ranks, beside in ((4, 2), (2, 4)):
        each = (n_ranks - 1) / n_ranks * GIB / seconds("all_gather", GIB, n_ranks, sheet=pcie, beside=beside)
        assert each == pytest.approx(16e9 / beside, rel=0.01)


def test_pairs_with_bridges_use_the_hubs_one_way() -> None:
    link = library.load_file(library.device_files("link")["pcie5_x16"], "link")
    assert isinstance(link, Link)
    bridged = LinkSheet.of(link, paired=True)
    assert bridged.hub_bytes_per_s == 2 * LinkSheet.of(link).hub_bytes_per_s
    full = TYPICAL["bandwidth_frac"] * bridged.within_bytes_per_s
    bus = 2 * 3 / 4 * GIB / seconds("all_reduce", GIB, 4, sheet=bridged)
    assert bus == pytest.approx(full / (1 + TURNING / 6), rel=0.01)


def test_one_who_only_sends_does_not_wait_for_the_slowest_caller() -> None:
    assert seconds("all_reduce", 1024.0, 2, call_s=5e-5) == 5e-5
    assert seconds("send_recv", 1024.0, 2, call_s=5e-5) < 1e-5


def test_a_mesh_gives_a_pair_one_of_its_links() -> None:
    mesh = LinkSheet(within_bytes_per_s=448e9, within_latency_s=1e-6, peer_bytes_per_s=64e9)
    rate = GIB / seconds("send_recv", GIB, 2, sheet=mesh)
    assert rate == pytest.approx(TYPICAL["bandwidth_frac"] * 64e9, rel=0.02)


def test_direct_reads_spare_small_all_reduces_the_ring() -> None:
    direct = seconds("all_reduce", 1024.0, 8, direct_bytes=8e6, call_s=1e-7)
    hop = TYPICAL["hop_s"] + FABRIC.within_latency_s / 2
    assert direct == pytest.approx(TYPICAL["launch_s"] + 3 * hop, rel=0.05)
    assert seconds("all_reduce", 1e9, 8, direct_bytes=8e6) == seconds("all_reduce", 1e9, 8)
    # what the host needs to call it is a floor, not an addition
    assert seconds("all_reduce", 1024.0, 8, direct_bytes=8e6, call_s=4e-5) == pytest.approx(4e-5)


@pytest.mark.parametrize("per_machine", [1, 2, 4, 8])
def test_rings_between_machines_share_all_adapters_of_a_machine(per_machine: int) -> None:
    machines = 4
    n = machines * per_machine
    took = seconds("reduce_scatter", 64 * GIB, n, per_machine, CLUSTER)
    # an adapter is filled better than a switch's link
    filled = 1.13 * TYPICAL["bandwidth_frac"]
    through_adapters = 64 * GIB * (n - 1) / n / (per_machine * filled * 50e9)
    inside = 64 * GIB * (n - 1) / n / (TYPICAL["bandwidth_frac"] * 400e9)
    assert took == pytest.approx(max(through_adapters, inside if per_machine > 1 else 0), rel=0.15)
    assert filled <= 0.96


def test_a_tree_keeps_small_all_reduces_over_many_machines_short() -> None:
    few, many = (seconds("all_reduce", 8192.0, 8.0 * m, 8, CLUSTER) for m in (2, 512))
    hop = TYPICAL["hop_s"] + CLUSTER.between_latency_s + 4e-6
    assert many - few == pytest.approx(2 * (np.log2(512) - 1) * hop, rel=0.01)
    assert many < 1e-3 < seconds("all_gather", 8192.0, 4096, 8, CLUSTER)


def test_one_column_may_be_an_array() -> None:
    sizes = np.logspace(3, 10, 5000)
    columns = LAW.columns((sizes, 64.0, 8.0))
    found = LAW.seconds(CLUSTER, TYPICAL, columns, dtype="bfloat16")
    assert found.shape == sizes.shape
    assert found[1234] == pytest.approx(seconds("all_reduce", sizes[1234], 64, 8, CLUSTER))


@given(
    op=st.sampled_from(OPS),
    n_bytes=st.floats(1, 1e11),
    factor=st.floats(1, 100),
    machines=st.integers(1, 512),
    local=st.sampled_from([1, 2, 4, 8]),
    direct_bytes=st.floats(1, 1e8),
    shared=st.booleans(),
    reduces=st.booleans(),
)
def test_more_bytes_never_take_less(
    op: str,
    n_bytes: float,
    factor: float,
    machines: int,
    local: int,
    direct_bytes: float,
    shared: bool,
    reduces: bool,
) -> None:
    sheet = LinkSheet(400e9, 1e-6, 50e9, 10e-6, shared=shared, reduces=reduces)
    n = machines * local
    small, large = (
        seconds(op, size, n, local, sheet, direct_bytes=direct_bytes) for size in (n_bytes, factor * n_bytes)
    )
    assert 0 <= small <= large * (1 + 1e-9)
    assert np.isfinite(large)
    assert n == 1 or small >= TYPICAL["hop_s"]


@given(op=st.sampled_from(["all_reduce", "reduce_scatter", "all_gather"]), n_bytes=st.floats(1, 1e11))
def test_more_machines_never_take_less(op: str, n_bytes: float) -> None:
    took = [seconds(op, n_bytes, 8.0 * m, 8, CLUSTER) for m in (2, 4, 16, 64, 512)]
    assert all(a <= b * (1 + 1e-9) for a, b in pairwise(took))


@pytest.mark.parametrize("name", sorted(library.device_files("link")))
def test_every_link_of_the_library_gives_a_sane_all_reduce(name: str) -> None:
    link = library.load_file(library.device_files("link")[name], "link")
    nvlink = library.load_file(library.device_files("link")["nvlink4"], "link")
    assert isinstance(link, Link)
    assert isinstance(nvlink, Link)
    inter = link.datasheet.scope == "inter_node"
    sheet = LinkSheet.of(nvlink, link, 8) if inter else LinkSheet.of(link)
    n = 4096.0 if inter else 8.0
    small, large = (seconds("all_reduce", size, n, 8, sheet) for size in (8.0, GIB))
    assert 5e-6 < small < 2e-3
    bus_rate = 2 * (n - 1) / n * GIB / large
    line_rate = link.datasheet.bandwidth_bytes_per_s * (8 if inter and link.datasheet.per == "device" else 1)
    assert 0.3 * line_rate < bus_rate < 1.2 * line_rate


def test_two_shares_of_an_adapter_rated_per_machine() -> None:
    nvlink, ethernet = (
        library.load_file(library.device_files("link")[name], "link") for name in ("nvlink4", "ethernet_100g")
    )
    assert isinstance(nvlink, Link)
    assert isinstance(ethernet, Link)
    sheet = LinkSheet.of(nvlink, ethernet, 8)
    assert sheet.between_bytes_per_s == pytest.approx(12.5e9 / 8)
    # eight ranks of one group get the whole port, one rank beside seven others an eighth of it
    whole, eighth = (seconds("reduce_scatter", GIB, 2.0 * g, g, sheet) for g in (8, 1))
    assert eighth / whole == pytest.approx(8 * (1 / 2) / (15 / 16), rel=0.01)
