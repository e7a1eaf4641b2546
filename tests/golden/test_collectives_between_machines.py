"""All-reduces between machines against figures that others published; no constant was fitted to any of these.

The constants are those pooled over links within machines, so the bounds are wide.
"""

from __future__ import annotations

import pytest

from sandtable.hardware import Link, LinkSheet, library
from sandtable.model.fitted_constants import resolve
from sandtable.model.laws.collective_law import AllReduce
from sandtable.published import systems

LAW = AllReduce()
GIB = 2.0**30
# within, between, machines, ranks in each, bytes, seconds, who says so
PUBLISHED = [
    ("nvlink3", "efa_v1", 2, 8, GIB, 35.2e-3, "NVIDIA/nccl#527, p4d"),
    ("nvlink3", "efa_v1", 4, 8, GIB, 70.3e-3, "NVIDIA/nccl#527, p4d"),
    ("nvlink3", "infiniband_hdr200", 4, 8, 8 * GIB, 2 * 31 / 32 * 8 * GIB / 192e9, "NVIDIA/nccl#812, DGX A100"),
    ("nvlink4", "infiniband_ndr400", 4, 8, 8 * GIB, 2 * 31 / 32 * 8 * GIB / 380e9, "NVIDIA/nccl-tests#309, H100"),
    ("nvlink4", "infiniband_ndr400", 248, 8, GIB / 2, 2 * GIB / 2 / 350e9, "NVIDIA/nccl-tests#283, H200"),
    ("nvlink4", "infiniband_ndr400", 2, 1, 2.0**21, 113e-6, "NVIDIA/nccl-tests#232, one H100 each"),
    ("nvlink4", "infiniband_ndr400", 2, 1, 2.0**25, 812e-6, "NVIDIA/nccl-tests#232, one H100 each"),
    ("nvlink4", "infiniband_ndr400", 2, 8, 64.0, 46e-6, "NVIDIA/nccl#1244, H20"),
    ("nvlink5", "efa_v3", 2, 8, 64.0, 55e-6, "dstackai/dstack#3961, p6-b200"),
]


def _link(name: str) -> Link:
    link = library.load_file(library.device_files("link")[name], "link")
    assert isinstance(link, Link)
    return link


@pytest.mark.parametrize(
    ("within", "between", "machines", "local", "n_bytes", "seconds"), [row[:-1] for row in PUBLISHED], ids=str
)
def test_within_a_factor(
    within: str, between: str, machines: int, local: int, n_bytes: float, seconds: float
) -> None:
    network = _link(between)
    constants = resolve(LAW, network, "nccl", systems.stack_of("nccl"))
    columns = LAW.columns((n_bytes, float(machines * local), float(local)))
    sheet = LinkSheet.of(_link(within), network, local)
    found = float(LAW.seconds(sheet, constants.values, columns, dtype="float32")[0])
    assert 1 / 1.6 < found / seconds < 1.6
