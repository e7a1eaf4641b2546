import datetime as dt
from pathlib import Path

import numpy as np
import pytest

from sandtable.calibration.fit import storage_fit
from sandtable.errors import CalibrationError
from sandtable.hardware import Storage, StoragePoint, library
from sandtable.model.laws import storage_law

DAY = dt.date(2026, 1, 2)


def device(name: str) -> Storage:
    found = library.load_component("storage", name)
    assert isinstance(found, Storage)
    return found


def errors(item: Storage) -> np.ndarray:
    law = storage_law.law_of(item)
    points = storage_fit.random_points(item)
    rates = [storage_law.throughput_bytes_per_s(law, p.chunk_bytes, float(p.concurrency)) for p in points]
    return np.array(rates) / [p.read_bytes_per_s for p in points] - 1


def made_up(n_points: int) -> Storage:
    """A drive whose points are those of a known law."""
    law = storage_law.law_of(device("apple_ssd_m1_max_1tb"))
    grid = [(c, n) for c in (4096.0, 16384.0, 65536.0, 262144.0) for n in (1, 4, 16, 64)][:n_points]
    points = tuple(
        StoragePoint(
            access="random",
            chunk_bytes=c,
            concurrency=n,
            read_bytes_per_s=storage_law.throughput_bytes_per_s(law, c, float(n)),
        )
        for c, n in grid
    )
    base = device("samsung_990_pro_1tb")
    return base.model_copy(update={"measurements": points, "fitted": None})


@pytest.mark.parametrize("n_points", [16, 6, 2])
def test_a_known_law_is_recovered(n_points: int) -> None:
    fitted = storage_fit.refit(made_up(n_points), date=DAY)
    assert fitted.fitted is not None
    assert np.abs(errors(fitted)).max() < 0.06
    evidence = fitted.fitted.random_evidence
    assert evidence.n_points == n_points
    assert evidence.residual_low_frac <= 1 <= evidence.residual_high_frac
    assert evidence.held_out_median_abs_error_frac is not None
    assert fitted.like is None


def test_few_points_keep_a_wide_interval() -> None:
    few = storage_fit.refit(made_up(2), date=DAY).fitted
    many = storage_fit.refit(made_up(16), date=DAY).fitted
    assert few is not None
    assert many is not None
    assert few.random_evidence.residual_low_frac < 0.8 < many.random_evidence.residual_low_frac
    assert few.random_evidence.residual_high_frac > many.random_evidence.residual_high_frac


def test_one_point_is_not_enough() -> None:
    with pytest.raises(CalibrationError, match="two are the least"):
        storage_fit.refit(made_up(1))


def test_the_curve_of_the_paper() -> None:
    """Fig. 2b of "LLM in a flash": 25 digitised points."""
    apple = device("apple_ssd_m1_max_1tb")
    assert apple.fitted is not None
    assert np.median(np.abs(errors(apple))) < 0.04
    assert (apple.fitted.random_evidence.held_out_median_abs_error_frac or 1) < 0.05


@pytest.mark.parametrize(
    "name", ["generic_flash", "apple_ssd_m1_max_1tb", "phison_e27t_1tb", "crucial_p5_plus_1tb", "ufs_4_0_512gb"]
)
def test_fitted_blocks_are_what_a_refit_gives(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.yaml"
    original = library.device_files("storage")[name].read_text()
    path.write_text("# a comment stays\n" + original)
    again = storage_fit.refit_file(path, date=DAY)
    shipped = device(name)
    assert shipped.fitted is not None
    assert again.fitted is not None
    for parameter in (
        "first_byte_s",
        "lane_bytes_per_s",
        "requests_per_s",
        "bandwidth_bytes_per_s",
        "knee",
        "blend",
    ):
        expected = getattr(shipped.fitted, parameter).value
        assert getattr(again.fitted, parameter).value == pytest.approx(expected, rel=1e-3), parameter
    text = path.read_text()
    assert text.startswith("# a comment stays\n")
    assert "2026-01-02" in text
    assert len(text.splitlines()) == len(original.splitlines()) + 1
    loaded = library.load_file(path, "storage")
    assert isinstance(loaded, Storage)
    assert loaded.measurements == shipped.measurements


def test_a_file_without_a_fit_gets_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "kind: storage\nname: mine  # my own\ntitle: Mine\n"
        "datasheet: {interface: NVMe, capacity: 1 TB, sequential_read: 6 GB/s}\n"
        "measurements:\n"
        "  - {access: random, chunk: 16 KiB, concurrency: 1, read: 90 MB/s}  # lone reads\n"
        "  - {access: random, chunk: 16 KiB, concurrency: 32, read: 1.5 GB/s}\n"
        "sources: {datasheet: its label, measurements: my own}\n"
    )
    storage_fit.refit_file(path)
    text = path.read_text()
    assert "# my own" in text
    assert "# lone reads" in text
    loaded = library.load_file(path, "storage")
    assert isinstance(loaded, Storage)
    assert loaded.fitted is not None
    assert np.abs(errors(loaded)).max() < 0.1
