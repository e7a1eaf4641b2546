"""A made-up processor of eight cores, for laws of passes on a CPU."""

from __future__ import annotations

from sandtable.hardware import Roofline

CPU = Roofline(
    name="cpu",
    n_units=8,
    peak_flops_per_s={"float32": 8e11},
    bandwidth_bytes_per_s=100e9,
    cache_bytes=32 << 20,
    family="cpu",
)
