"""``calibrate --from-data``: constants land in device files and stack files, and leave the rest of the files alone."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sandtable.calibration import write
from sandtable.calibration.fit import left_out
from sandtable.cli.app import app
from sandtable.demand.operator import operators
from sandtable.errors import ConfigError, UnknownName
from sandtable.hardware import Accelerator, Processor, Roofline, Stack, library
from sandtable.model.fitted_constants import resolve
from sandtable.published import fit_rows, scoring, systems

TRUE = {"rate_frac": 0.7, "bandwidth_frac": 0.9, "launch_s": 4e-6, "tile_s": 1e-6, "quantise_passes": 1.5}
DEVICES = {"a100_sxm": "nvidia_a100_sxm", "h100_sxm": "nvidia_h100_sxm", "h200_sxm": "nvidia_h200_sxm"}
COLUMNS: tuple[str, ...] = ("system", "framework", "dtype", "m", "n", "k", "latency_ms")


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the library's devices, which a test may write to."""
    folder = tmp_path / "devices"
    for kind in ("accelerators", "memory", "stacks", "links"):
        shutil.copytree(library.root() / "devices" / kind, folder / kind)
    monkeypatch.setenv(library.SEARCH_PATH_VARIABLE, str(folder))
    systems.forget()
    yield folder
    systems.forget()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of three devices which follow the law with `TRUE`, some percent off."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(2)
    with (folder / "op_gemm.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for system in DEVICES:
            for dtype in ("bfloat16", "fp8"):
                writer.writerows(_rows(system, dtype, rng))
    return folder


@pytest.fixture(scope="module")
def found(data: Path) -> fit_rows.FromData:
    return fit_rows.fit_all(data)


def _rows(system: str, dtype: str, rng: np.random.Generator) -> list[dict[str, object]]:
    found = systems.find(system)
    assert isinstance(found, Accelerator)
    sheet = Roofline.of(found, found.memory)
    law, rows = operators()["gemm"], []
    for m in (1, 16, 256, 4096):
        for n, k in ((4096, 4096), (1024, 8192), (16_384, 4096)):
            exact = law.seconds(sheet, TRUE, law.columns((m, n, k, 1)), dtype=dtype)[0]
            milliseconds = 1e3 * float(exact * np.exp(rng.normal(0, 0.02)))
            cells = (system, "vllm", dtype, m, n, k, f"{milliseconds:.6f}")
            rows.append(dict(zip(COLUMNS, cells, strict=True)))
    return rows


def gemm_of(software: str, device: str = "nvidia_h100_sxm") -> dict[str, float]:
    systems.forget()
    processor, stack = library.load_accelerator(device), library.load_component("stack", software)
    assert isinstance(stack, Stack)
    return dict(resolve(operators()["gemm"], processor, software, stack).values)


def test_constants_are_written_and_used(devices: Path, data: Path, found: fit_rows.FromData) -> None:
    paths = fit_rows.write(found)
    # rows that the package ships join those of the folder: products on an RTX 4090
    assert {path.stem for path in paths} == {*DEVICES.values(), "nvidia_rtx_4090", "vllm", "cublas"}
    for device in DEVICES.values():
        values = gemm_of("vllm", device)
        assert values["rate_frac"] == pytest.approx(0.7, rel=0.1)
        assert values["bandwidth_frac"] == pytest.approx(0.9, rel=0.1)
    score = scoring.run(data, "op_gemm").datasets[0].to_json()
    assert score["scored"] == 72
    assert score["median_abs_error_frac"] < 0.03
    assert score["held_out"]["scored"] == 72
    assert score["held_out"]["median_abs_error_frac"] < 0.04


def test_a_device_without_rows_gets_its_siblings_constants(devices: Path, found: fit_rows.FromData) -> None:
    fit_rows.write(found)
    l4 = library.load_accelerator("nvidia_l4")
    resolved = resolve(operators()["gemm"], l4, "vllm", systems.stack_of("vllm"))
    assert resolved.origin == "siblings"
    assert resolved.values["rate_frac"] == pytest.approx(0.7, rel=0.1)
    # leaving one of three out missed hardly anything, as all follow one law; that promises little of the next
    usual = np.exp(left_out.half_width(0.0, 0, operators()["gemm"].scatter.siblings))
    assert np.exp(0.15) < resolved.residual_high_frac < np.exp(0.25) < usual
    assert resolved.residual_low_frac == pytest.approx(1 / resolved.residual_high_frac, rel=1e-4)


def test_a_device_may_name_the_sibling_that_it_takes_constants_from(
    devices: Path, found: fit_rows.FromData
) -> None:
    path = devices / "accelerators" / "nvidia_l4.yaml"
    path.write_text(path.read_text().replace("datasheet:\n", "like: nvidia_h100_sxm\ndatasheet:\n", 1))
    fit_rows.write(found)
    l4, h100 = (library.load_accelerator(name) for name in ("nvidia_l4", "nvidia_h100_sxm"))
    stack = systems.stack_of("vllm")
    near, own = (resolve(operators()["gemm"], device, "vllm", stack) for device in (l4, h100))
    assert (near.origin, own.origin) == ("like", "device")
    assert near.values == own.values
    # how far it may miss is known from devices that were left out
    pooled = resolve(operators()["gemm"], l4.model_copy(update={"like": None}), "vllm", stack)
    assert near.residual_high_frac == pooled.residual_high_frac
    path.write_text(path.read_text().replace("like: nvidia_h100_sxm", "like: nvidia_h1000", 1))
    with pytest.raises(ConfigError, match="nvidia_h100"):
        library.load_accelerator("nvidia_l4")


def test_what_else_is_in_a_file_stays(devices: Path, found: fit_rows.FromData) -> None:
    path = devices / "accelerators" / "nvidia_h100_sxm.yaml"
    text = "# a remark at the top\n" + path.read_text().replace("  tdp:", "  # beside a number\n  tdp:", 1)
    path.write_text(text)
    before = library.load_file(path)
    fit_rows.write(found)
    after = library.load_file(path)
    assert isinstance(before, Processor)
    assert isinstance(after, Processor)
    assert "# a remark at the top" in path.read_text()
    assert "# beside a number" in path.read_text()
    assert after.datasheet == before.datasheet
    assert after.fitted is not None
    if before.fitted is not None:
        assert after.fitted.operators.get("attention") == before.fitted.operators.get("attention")
        assert after.fitted.operators.get("memory_bound") == before.fitted.operators.get("memory_bound")
        assert after.fitted.operators["gemm"]["trtllm"] == before.fitted.operators["gemm"]["trtllm"]
    assert "aiconfigurator" in after.sources["fitted.operators.gemm.vllm"]


def test_writing_twice_changes_nothing(devices: Path, data: Path, found: fit_rows.FromData) -> None:
    fit_rows.write(found)
    paths = [*devices.rglob("*.yaml")]
    once = {path: path.read_text() for path in paths}
    fit_rows.write(fit_rows.fit_all(data))
    assert {path: path.read_text() for path in paths} == once


def test_the_command_prints_three_tables_and_keeps_files_on_a_dry_run(devices: Path, data: Path) -> None:
    before = {path: path.read_text() for path in devices.rglob("*.yaml")}
    ran = CliRunner().invoke(
        app, ["calibrate", "--from-data", str(data), "--only", "op_gemm", "--dry-run", "--format", "csv"]
    )
    assert ran.exit_code == 0, ran.output
    for words in ("rate_frac", "nvidia_h200_sxm", "device left out", "held out"):
        assert words in ran.output
    assert {path: path.read_text() for path in devices.rglob("*.yaml")} == before


def test_left_out_devices_are_predicted_from_the_others(found: fit_rows.FromData) -> None:
    # of the other software, real rows that the package ships are among the devices
    for item in (item for item in found.devices if item.group.software == "vllm"):
        assert item.left_out is not None
        assert np.median(np.abs(np.expm1(item.left_out))) < 0.05


def test_a_device_with_hardly_any_rows_is_not_fitted_but_named(tmp_path: Path) -> None:
    rows = ",".join(COLUMNS) + "\n" + "l40s,sglang,fp8,1,4096,4096,0.05\n"
    (tmp_path / "op_gemm.csv").write_text(rows)
    few = fit_rows.fit_all(tmp_path)
    assert few.notes == ["nvidia_l40s, sglang, gemm: only 1 points, not fitted"]
    assert not few.devices
    assert not few.pooled


def test_a_folder_without_rows_and_a_wrong_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        fit_rows.fit_all(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"expected any of: .*op_gemm\.csv"):
        fit_rows.fit_all(tmp_path)
    with pytest.raises(UnknownName, match="op_gemm"):
        fit_rows.fit_all(tmp_path, ["op_gem"])


def test_a_file_that_would_not_load_any_more_is_left_as_it_was(devices: Path, found: fit_rows.FromData) -> None:
    path = devices / "accelerators" / "nvidia_h100_sxm.yaml"
    path.write_text(path.read_text().replace("family: gpu", "family: gpu\n  colour: green"))
    broken = path.read_text()
    item = next(item for item in found.devices if item.group.device == "nvidia_h100_sxm")
    with pytest.raises(ConfigError, match="colour"):
        write.put_fit(path, item.group.path, item.fit, item.source)
    assert path.read_text() == broken
