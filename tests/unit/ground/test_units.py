import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable import units

QUANTITIES = ["bytes", "bytes/s", "s", "FLOP", "FLOP/s", "1/s", "Hz", "W", "J", "USD", "USD/h", "frac"]


@pytest.mark.parametrize(
    ("text", "quantity", "value"),
    [
        ("16 KiB", "bytes", 16384),
        ("1 TB", "bytes", 1e12),
        ("64 GiB", "bytes", 64 * 2**30),
        ("4096 B", "bytes", 4096),
        ("1_000 kB", "bytes", 1e6),
        ("3.35 TB/s", "bytes/s", 3.35e12),
        ("1000 MiB/s", "bytes/s", 1000 * 2**20),
        ("25 Gbit/s", "bytes/s", 3.125e9),
        ("118 us", "s", 118e-6),
        ("118 µs", "s", 118e-6),
        ("350 ns", "s", 3.5e-07),
        ("2 h", "s", 7200),
        ("1 day", "s", 86400),
        ("2 GFLOP", "FLOP", 2e9),
        ("989 TFLOP/s", "FLOP/s", 989e12),
        ("242 TOP/s", "FLOP/s", 242e12),
        ("411 kIOPS", "1/s", 411e3),
        ("1.2 MIOPS", "1/s", 1.2e6),
        ("10 /s", "1/s", 10),
        ("2.6 GHz", "Hz", 2.6e9),
        ("700 W", "W", 700),
        ("14.3 kW", "W", 14300),
        ("1 kWh", "J", 3.6e6),
        ("1600 USD", "USD", 1600),
        ("2.49 USD/h", "USD/h", 2.49),
        ("730 USD/month", "USD/h", 1),
        ("3 %", "frac", 0.03),
        ("0.5", "frac", 0.5),
        (0.5, "frac", 0.5),
        (0, "bytes", 0),
        ("  1e3 B ", "bytes", 1000),
        ("-2 us", "s", -2e-6),
        (".5 TB", "bytes", 5e11),
    ],
)
def test_parse(text: object, quantity: str, value: float) -> None:
    assert units.parse(text, quantity) == value


@pytest.mark.parametrize(
    ("text", "quantity", "message"),
    [
        (350, "s", "a unit is required: write it like '350 s', not as a bare number"),
        (16, "bytes", "a unit is required: write it like '16 B', not as a bare number"),
        ("350", "s", "a unit is required: write it like '350 s', not as a bare number"),
        ("80Gb", "bytes", "'80Gb' mixes up bits and bytes: write '80 GB' for bytes"),
        (
            "80 Gbps",
            "bytes/s",
            "'80 Gbps' mixes up bits and bytes: write '80 GB/s' for bytes or '80 Gbit/s' for bits",
        ),
        ("80 GB/s", "bytes", "'80 GB/s' is a transfer rate, but a size is needed: '16 KiB'"),
        ("80 GB", "bytes/s", "'80 GB' is a size, but a transfer rate is needed: '3.35 TB/s'"),
        ("3 W", "J", "'3 W' is a power, but an energy is needed: '3 J'"),
        ("5 gb", "bytes", "unknown unit 'gb' in '5 gb': did you mean '5 GB'?"),
        ("5 gB", "bytes", "unknown unit 'gB' in '5 gB': did you mean '5 GB'?"),
        ("5 ghz", "Hz", "unknown unit 'ghz' in '5 ghz': did you mean '5 GHz'?"),
        ("5 parsec", "s", "unknown unit 'parsec' in '5 parsec': write it like '118 us'"),
        ("fast", "bytes/s", "'fast' is not a transfer rate: write it like '3.35 TB/s'"),
        ("", "bytes", "'' is not a size: write it like '16 KiB'"),
        ("1e400 B", "bytes", "'1e400 B' is not a finite number"),
        (True, "bytes", "a size is needed, such as '16 KiB', not True"),
        (None, "s", "a time is needed, such as '118 us', not None"),
        (["1 s"], "s", "a time is needed, such as '118 us', not ['1 s']"),
    ],
)
def test_refusals_say_what_to_write(text: object, quantity: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as refusal:
        units.parse(text, quantity)
    assert str(refusal.value) == message


@given(
    value=st.floats(min_value=1e-9, max_value=1e20, allow_nan=False),
    quantity=st.sampled_from(QUANTITIES),
)
def test_write_then_parse_keeps_the_value(value: float, quantity: str) -> None:
    assert math.isclose(units.parse(units.write(value, quantity), quantity), value, rel_tol=1e-5)


@given(
    value=st.integers(min_value=1, max_value=999_999).flatmap(
        lambda n: st.sampled_from([n * 10**e for e in range(13)])
    )
    | st.integers(min_value=1, max_value=9_999).flatmap(lambda n: st.sampled_from([n * 1024**e for e in range(5)]))
)
def test_sizes_people_write_survive_exactly(value: int) -> None:
    assert units.parse(units.write(float(value), "bytes"), "bytes") == value


@pytest.mark.parametrize(
    ("value", "quantity", "text"),
    [
        (1e12, "bytes", "1 TB"),
        (80e9, "bytes", "80 GB"),
        (64 * 2**30, "bytes", "64 GiB"),
        (16384, "bytes", "16 KiB"),
        (141 * 2**30, "bytes", "141 GiB"),
        (0, "bytes", "0 B"),
        (411e3, "1/s", "411 k/s"),
        (118e-6, "s", "118 us"),
        (2.49, "USD/h", "2.49 USD/h"),
        (0.03, "frac", "3 %"),
        (989e12, "FLOP/s", "989 TFLOP/s"),
    ],
)
def test_write(value: float, quantity: str, text: str) -> None:
    assert units.write(value, quantity) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (16384, "bytes", "16 KiB"),
        (3.35e12, "bytes/s", "3.35 TB/s"),
        (0.000118, "s", "118 us"),
        (1.5, "s", "1.5 s"),
        (600, "s", "10 min"),
        (36000, "s", "10 h"),
        (0, "s", "0 ns"),
        (700, "W", "700 W"),
        (14300, "W", "14.3 kW"),
        (0.031, "frac", "3.1 %"),
        (2.4912, "USD/h", "2.491 USD/h"),
        (1234567, "1", "1 234 567"),
        (12.34, "tokens/s", "12.3 tokens/s"),
    ],
)
def test_format_quantity(value: float, unit: str, text: str) -> None:
    assert units.format_quantity(value, unit) == text


@pytest.mark.parametrize(
    ("name", "quantity", "key", "unit"),
    [
        ("latency_s", "s", "latency", "s"),
        ("latency_s.p50", "s", None, "s"),
        ("sequential_read_bytes_per_s", "bytes/s", "sequential_read", "bytes/s"),
        ("random_read_per_s", "1/s", "random_read", "random_read/s"),
        ("peak_flops_per_s", "FLOP/s", "peak", "FLOP/s"),
        ("usd_per_h", "USD/h", "usd", "USD/h"),
        ("on_demand_usd_per_h", "USD/h", "on_demand", "USD/h"),
        ("usd_per_mtok", None, None, "USD/Mtok"),
        ("usd_per_million_images", None, None, "USD/million images"),
        ("tokens_per_s", "1/s", "tokens", "tokens/s"),
        ("energy_j", "J", "energy", "J"),
        ("error_frac", "frac", "error", "1"),
        ("bytes_read", None, None, "bytes"),
        ("cores", None, "cores", "1"),
    ],
)
def test_names_carry_their_unit(name: str, quantity: str | None, key: str | None, unit: str) -> None:
    assert units.quantity_of(name) == quantity
    assert units.unit_of(name) == unit
    if key is not None and name != "usd_per_h":
        assert units.strip_suffix(name) == key
