import csv
import json
from pathlib import Path

import numpy as np
import pytest

from sandtable.errors import ConfigError, UnknownName
from sandtable.hardware import library
from sandtable.model.laws import storage_law as storage_model
from sandtable.published import scoring
from sandtable.published.adapter import Adapter, Outcome, Scored, Skipped
from sandtable.published.rows import MalformedRow, Row
from sandtable.published.storage.storage_measured import StorageMeasured
from sandtable.published.storage.storage_names import NO_DEVICE, NO_SIZE, Target, find

COLUMNS = [
    "device",
    "device_family",
    "measure_tool",
    "access",
    "block_size",
    "queue_depth",
    "threads",
    "disks",
    "read_iops",
    "read_mb_per_s",
    "read_latency_ms_mean",
    "write_iops",
    "write_mb_per_s",
    "write_latency_ms_mean",
    "sustained_write_mb_per_s",
    "notes",
    "source",
]
BOTH = "random 4 KiB for IOPS, sequential large for bandwidth"


def cells(device: str, **values: str) -> dict[str, str]:
    return dict.fromkeys(COLUMNS, "") | {"device": device} | values


def row(device: str, **values: str) -> Row:
    return Row(line=2, cells=cells(device, **values))


def write(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "storage_measured.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def points(device: str, **values: str) -> dict[str, Scored]:
    outcome = StorageMeasured().predict(row(device, **values))
    assert not isinstance(outcome, Skipped), outcome
    return {point.metric: point for point in outcome if isinstance(point, Scored)}


class Doubling(Adapter):
    name = "doubling"
    title = "a made-up adapter"
    metrics = ("a", "b")

    def predict(self, row: Row) -> Outcome:
        value = row.number("value")
        if value is None:
            return Skipped("no value")
        if value == 3:
            return [Skipped("b is not modelled", metric="b"), self.point(row, value)]
        return [self.point(row, value)]

    def point(self, row: Row, value: float) -> Scored:
        return Scored(
            row_id=str(row.line),
            metric="a",
            unit="1",
            predicted=2 * value,
            low=value,
            high=4 * value,
            measured=row.number("measured") or 0.0,
            label="",
            group="",
        )


def scores(folder: Path, text: str) -> dict[str, scoring.DatasetScore]:
    (folder / "doubling.csv").write_text(text)
    return {score.metric: score for score in scoring.score(Doubling(), folder)}


def test_every_row_is_scored_or_counted_under_one_reason(tmp_path: Path) -> None:
    found = scores(tmp_path, "value,measured\n1,2\n2,5\n3,6\n,1\nx,1\n4,0\n1,2,3\n5\n")
    a, b = found["a"], found["b"]
    assert (a.rows, a.scored) == (8, 3)
    assert a.skipped == {"no value": 1, "malformed row": 4}
    assert b.skipped == {scoring.NO_FIGURE: 2, "b is not modelled": 1, "no value": 1, "malformed row": 4}
    assert a.malformed_lines == (6, 7, 8, 9)
    for score in found.values():
        assert score.scored + sum(score.skipped.values()) == score.rows


def test_errors_bias_and_coverage(tmp_path: Path) -> None:
    data = scores(tmp_path, "value,measured\n1,2\n2,5\n3,12\n10,10\n100,500\n")["a"].to_json()
    errors = np.array([0, -0.2, -0.5, 1, -0.6])
    assert data["median_abs_error_frac"] == pytest.approx(0.5)
    assert data["p90_abs_error_frac"] == pytest.approx(np.percentile(abs(errors), 90))
    assert data["bias_frac"] == pytest.approx(-0.2)
    assert data["coverage_frac"] == pytest.approx(0.8)
    assert [entry["row"] for entry in data["worst"]][:2] == ["6", "4"] or data["worst"][0]["row"] == "6"


def test_nothing_scored_is_null_not_zero(tmp_path: Path) -> None:
    data = scores(tmp_path, "value,measured\n,2\n")["a"].to_json()
    assert data["scored"] == 0
    assert data["median_abs_error_frac"] is None


def test_adapters_are_found_and_named_as_their_files() -> None:
    known = scoring.adapters()
    assert "storage_measured" in known
    for name, adapter in known.items():
        assert adapter.name == name
        assert adapter.title
        assert adapter.metrics


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        scoring.run(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"storage_measured\.csv"):
        scoring.run(tmp_path)
    with pytest.raises(UnknownName, match="did you mean 'storage_measured'"):
        scoring.run(tmp_path, only="storage_mesured")
    (tmp_path / "storage_measured.csv").write_bytes(b"device\n\xff\xfe\x00")
    with pytest.raises(ConfigError, match="no UTF-8 text"):
        scoring.run(tmp_path, only="storage_measured")


def test_a_file_of_other_columns_is_all_malformed(tmp_path: Path) -> None:
    (tmp_path / "storage_measured.csv").write_text("some,thing\n1,2\n")
    report = scoring.run(tmp_path, "storage_measured")
    assert report.datasets[0].skipped == {"malformed row": 1}


def test_the_json_of_the_design(tmp_path: Path) -> None:
    write(
        tmp_path,
        [
            cells("AWS i3.large instance store", access=BOTH, queue_depth="saturating", read_iops="100000"),
            cells("Some Unheard-of Drive", access="random 4 KiB", read_iops="1000"),
            cells("Samsung 990 Pro", access="random 4K write", block_size="4KiB", write_iops="1000"),
            cells("Samsung 990 Pro", access="random read", read_iops="1000"),
        ],
    )
    report = scoring.run(tmp_path, ["storage_measured"])
    data = json.loads(json.dumps(report.to_json()))
    assert data["schema"] == 1
    iops = next(entry for entry in data["datasets"] if entry["metric"] == "read_iops")
    assert iops["name"] == "storage_measured"
    assert (iops["rows"], iops["scored"]) == (4, 1)
    assert iops["skipped"] == {"a write figure": 1, "block size not stated": 1, "no device file": 1}
    assert iops["median_abs_error_frac"] <= iops["p90_abs_error_frac"]


# --- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "device", "drives"),
    [
        ("AWS i4i.4xlarge instance store", "aws_i4i@4xlarge", 1),
        ("AWS i4i.16xlarge instance store", "aws_i4i@16xlarge", 1),
        ("AWS i7i.16xlarge instance store", "aws_i7i@16xlarge", 4),
        ("AWS i3.ALL instance store", "aws_i3", 1),
        ("AWS r5d.2xlarge instance store", "aws_r5d@2xlarge", 1),
        ("GCP n2-highmem-64 with 24 local SSD", "gcp_local_ssd@x24", 1),
        ("GCP c2-standard-8 with 4 local SSD", "gcp_local_ssd@x4", 1),
        ("GCP z3-highmem-88-highlssd", "gcp_z3@88-highlssd", 1),
        ("AWS EBS gp3", "aws_ebs_gp3", 1),
        ("Samsung PM9A1 512GB unit 2", "samsung_pm9a1_512gb", 1),
        ("Samsung 990 PRO 1TB", "samsung_990_pro_1tb", 1),
        ("samsung 990 pro 2 TB", "samsung_990_pro_2tb", 1),
        ("Samsung PM9A3 1.92TB", "samsung_pm9a3_1920gb", 1),
        ("Samsung SSD 960 Pro", "samsung_960_pro_2tb", 1),
        ("Intel P5510 3.84 TB NVMe", "intel_p5510_3840gb", 1),
        ("4 x Samsung 980 PRO 2TB", "samsung_980_pro_2tb", 4),
    ],
)
def test_names_find_their_device(text: str, device: str, drives: int) -> None:
    target = find(text)
    assert isinstance(target, Target)
    assert (target.storage.name, target.drives) == (device, drives)


@pytest.mark.parametrize(
    "text",
    [
        "Samsung 990 EVO Plus 1TB",
        "Samsung 870 EVO Plus",
        "Kioxia Exceria Plus G4",
        "AWS zz9.large instance store",
        "Intel",
        "",
        "SSD 2TB",
    ],
)
def test_other_products_are_not_taken_for_known_ones(text: str) -> None:
    assert find(text) is NO_DEVICE


def test_an_offer_that_the_file_lacks() -> None:
    assert find("AWS i3.77xlarge instance store") is NO_SIZE
    assert find("GCP n2-standard-8 with 5 local SSD") is NO_SIZE


def test_drives_of_a_set_add_up() -> None:
    one, four = find("Samsung 980 PRO 2TB"), find("Samsung 980 PRO 2TB", disks=4)
    assert isinstance(one, Target)
    assert isinstance(four, Target)
    assert (one.drives, four.drives) == (1, 4)
    kwargs = {"access": "sequential 1 MiB", "block_size": "1MiB", "read_mb_per_s": "1", "queue_depth": "128"}
    rate = points("Samsung 980 PRO 2TB", **kwargs)["read_mb_per_s"].predicted
    wide = points("Samsung 980 PRO 2TB", disks="4", **kwargs)["read_mb_per_s"].predicted
    assert wide == pytest.approx(4 * rate, rel=0.01)


# --- demands -----------------------------------------------------------------------------------------------


def test_a_saturated_row_gives_the_data_sheet_back() -> None:
    sheet = library.load_component("storage", "aws_i4i@4xlarge").datasheet  # type: ignore[attr-defined]
    found = points(
        "AWS i4i.4xlarge instance store",
        access=BOTH,
        queue_depth="saturating",
        read_iops="380000",
        read_mb_per_s="3000",
    )
    assert found["read_iops"].predicted == pytest.approx(sheet.random_read_per_s, rel=0.01)
    assert found["read_mb_per_s"].predicted == pytest.approx(sheet.sequential_read_bytes_per_s / 1e6)


def test_one_request_in_flight_is_the_latency() -> None:
    found = points(
        "Intel Optane 905P",
        access="random 4 KiB read",
        block_size="4KiB",
        queue_depth="1",
        read_latency_ms_mean="0.011",
        read_iops="90000",
    )
    law = storage_model.law_of(library.load_component("storage", "intel_optane_905p_960gb"))  # type: ignore[arg-type]
    latency = found["read_latency_ms"].predicted
    assert latency == pytest.approx(1e3 * storage_model.lane_s(law, 4096), rel=0.02)
    assert found["read_iops"].predicted == pytest.approx(1e3 / latency)
    assert found["read_latency_ms"].low < latency < found["read_latency_ms"].high


def test_queue_depth_times_threads() -> None:
    texts = {"access": "random 4K read", "block_size": "4KiB", "read_iops": "1"}
    four = points("Samsung 990 Pro", queue_depth="16", threads="4", **texts)["read_iops"].predicted
    flat = points("Samsung 990 Pro", queue_depth="64", **texts)["read_iops"].predicted
    deep = points("Samsung 990 Pro", queue_depth="saturating", **texts)["read_iops"].predicted
    assert four == flat < deep


def test_an_old_slot_is_the_limit() -> None:
    texts = {"access": "sequential 1 MiB", "block_size": "1MiB", "queue_depth": "32", "read_mb_per_s": "3450"}
    free = points("Samsung 980 PRO 2TB", **texts)["read_mb_per_s"].predicted
    capped = points("Samsung 980 PRO 2TB", notes="several sit in PCIe 3 slots", **texts)["read_mb_per_s"].predicted
    assert free > 6000
    assert capped == pytest.approx(3500)


def test_provisioned_requests_bound_a_volume() -> None:
    found = points("AWS EBS gp3 4000 IOPS", access=BOTH, read_iops="4000", read_mb_per_s="900")
    assert found["read_iops"].predicted == pytest.approx(4000, rel=0.01)
    assert found["read_mb_per_s"].predicted <= 1049


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"access": "random read", "read_iops": "1"}, "block size not stated"),
        ({"access": "random 4K read", "read_latency_ms_mean": "1"}, "queue depth not stated"),
        ({"access": "reads", "read_iops": "1"}, "order of the reads not stated"),
        ({"access": "random 4K"}, "no figure in the row"),
        ({"access": "random 4K write", "write_iops": "1"}, "a write figure"),
    ],
)
def test_why_a_row_is_skipped(values: dict[str, str], reason: str) -> None:
    outcome = StorageMeasured().predict(row("Samsung 990 Pro", **values))
    first = outcome if isinstance(outcome, Skipped) else outcome[0]
    assert isinstance(first, Skipped)
    assert first.reason == reason


@pytest.mark.parametrize(
    "values", [{"read_iops": "many"}, {"queue_depth": "deep"}, {"queue_depth": "0"}, {"block_size": "0KiB"}]
)
def test_a_row_that_cannot_be_read(values: dict[str, str]) -> None:
    texts = {"access": "random read", "block_size": "4KiB", "read_iops": "1"} | values
    with pytest.raises(MalformedRow):
        StorageMeasured().predict(row("Samsung 990 Pro", **texts))


def test_held_out_constants_come_from_the_other_sizes(tmp_path: Path) -> None:
    sizes = [("large", 34000), ("xlarge", 68000), ("2xlarge", 136000), ("4xlarge", 272000)]
    write(
        tmp_path,
        [
            cells(
                f"AWS i4g.{size} instance store",
                access=BOTH,
                queue_depth="saturating",
                read_iops=str(3 * iops),  # three times what the device file says: only rows can tell
                read_mb_per_s=str(0.03 * iops),
            )
            for size, iops in sizes
        ],
    )
    score = scoring.run(tmp_path, "storage_measured").datasets[0]
    assert scoring.error_summary(score.points)["median_abs_error_frac"] == pytest.approx(2 / 3, rel=0.02)
    assert len(score.held_out) == 4
    assert (scoring.error_summary(score.held_out)["median_abs_error_frac"] or 1) < 0.02
