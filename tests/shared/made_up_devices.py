"""Data sheets of a made-up GPU and a made-up CPU, for laws: tests replace what they look at."""

from __future__ import annotations

from dataclasses import replace

from sandtable.hardware import Roofline

GPU = Roofline(
    name="made_up",
    n_units=100,
    peak_flops_per_s={"float32": 50e12, "bfloat16": 1000e12, "fp8": 2000e12},
    bandwidth_bytes_per_s=3e12,
    cache_bytes=50e6,
    clock_hz=1.8e9,
)
CPU = Roofline(
    name="cpu",
    n_units=8,
    peak_flops_per_s={"float32": 8e11},
    bandwidth_bytes_per_s=100e9,
    cache_bytes=32 << 20,
    family="cpu",
)
FOUR_CORES = replace(
    CPU, n_units=4, peak_flops_per_s={"float32": 400e9}, bandwidth_bytes_per_s=40e9, cache_bytes=32e6
)
TWO_CORES = replace(CPU, n_units=2, peak_flops_per_s={"float32": 2e11}, bandwidth_bytes_per_s=2e10, cache_bytes=0.0)
