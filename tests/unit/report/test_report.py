import csv
import io
import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

from sandtable.errors import ConfigError
from sandtable.hardware import Machine, PriceList, StoragePoint, library
from sandtable.report import figures, plots, rendering, run_report, timeline
from sandtable.report.listing import listing
from sandtable.results import Answer, Comparison, Measurement, Metric, Prediction, TraceRow
from sandtable.runs import compare
from sandtable.runs.check import CHECK, CheckList
from sandtable.runs.run_folder import RunFolder
from sandtable.table import Quantity, Table

NASTY = "<script>alert('x')</script> & | \"quoted\""


def metric(value: float, low: float, high: float, unit: str = "s", samples: tuple[float, ...] = ()) -> Metric:
    return Metric(value=value, low=low, high=high, unit=unit, samples=samples)


def a_prediction(**changes: Any) -> Prediction:
    values: dict[str, Any] = {
        "scenario": {"name": "small", "thresholds": {"latency_s.mean": "< 200 ms"}},
        "machine": "test_machine",
        "machine_digest": "abc123",
        "metrics": {
            "latency_s.mean": metric(0.118, 0.100, 0.130),
            "io_s.mean": metric(0.080, 0.070, 0.090),
            "bytes_read": metric(16384.0, 16384.0, 16384.0, "bytes"),
            "usd_per_mtok": metric(2.5, 2.0, 3.0, "USD/Mtok"),
        },
        "breakdown": {"io": 0.08, "compute": 0.038},
        "memory": {"weights": 3 * 2.0**30, "cache": 2.0**30},
        "warnings": ("a number is a guess",),
        "binding_resource": "io",
    }
    return Prediction(**(values | changes))


def a_measurement(**changes: Any) -> Measurement:
    values: dict[str, Any] = {
        "scenario": {"name": "small"},
        "machine": "test_machine",
        "metrics": {
            "latency_s.mean": metric(0.100, 0.095, 0.105, samples=(0.09, 0.10, 0.11)),
            "io_s.mean": metric(0.100, 0.09, 0.11),
            "bytes_read": metric(16384.0, 16384.0, 16384.0, "bytes"),
        },
        "breakdown": {"io": 0.07, "compute": 0.03},
        "environment": {"cpu": "A CPU <of sorts>", "kernel": "Linux 6.1"},
        "validity": ("repeats lie 9 % apart",),
    }
    return Measurement(**(values | changes))


@pytest.fixture
def comparison() -> Comparison:
    return compare.judge(compare.compare(a_prediction(), a_measurement()))


# --- tables ------------------------------------------------------------------------------------------------

TABLE = Table(
    columns=("name", "rate", "held", "unit"),
    units=("", "MB/s", "", ""),
    rows=[
        ["a|b", 12.3456789, True, "x"],
        [NASTY, Quantity(0.118, "s"), False, "s"],
        ["c", None, None, ""],
    ],
    title="Things [bold]",
    notes=("a note",),
)


def test_table_for_people() -> None:
    lines = rendering.render(TABLE, "table").splitlines()
    assert lines[0] == "Things [bold]"
    assert lines[1].split() == ["name", "rate", "held"]
    assert lines[2].split() == ["MB/s"]
    assert lines[4].split() == ["a|b", "12.35", "✓"]
    assert lines[5].split()[-3:] == ["118", "ms", "✗"]
    assert lines[-1] == "  a note"
    assert "\x1b" not in "".join(lines)


def test_markdown() -> None:
    lines = rendering.render(TABLE, "md").splitlines()
    assert lines[2:5] == ["| name | rate (MB/s) | held |", "|---|---:|---|", "| a\\|b | 12.35 | ✓ |"]


def test_csv_holds_plain_numbers() -> None:
    rows = list(csv.reader(io.StringIO(rendering.render(TABLE, "csv"))))
    assert rows[0] == ["name", "rate [MB/s]", "held", "unit"]
    assert rows[1] == ["a|b", "12.3456789", "True", "x"]
    assert rows[2] == [NASTY, "0.118", "False", "s"]


def test_json_holds_plain_numbers() -> None:
    data = json.loads(rendering.render(TABLE, "json"))
    assert data["schema"] == 1
    assert data["rows"][1] == {"name": NASTY, "rate [MB/s]": 0.118, "held": False, "unit": "s"}
    assert data["notes"] == ["a note"]


def test_a_frame_holds_plain_numbers() -> None:
    frame = TABLE.to_frame()
    assert list(frame.columns) == ["name", "rate [MB/s]", "held", "unit"]
    assert frame["rate [MB/s]"].dtype == "float64"
    assert frame["rate [MB/s]"].tolist()[:2] == [12.3456789, 0.118]
    assert frame["rate [MB/s]"].isna().tolist() == [False, False, True]
    assert Table(columns=("a", "b"), rows=[], units=("s", "")).to_frame().empty


def test_prices_as_a_frame_are_those_that_are_listed() -> None:
    listed = listing("prices").to_frame()
    lists = [library.load_component("prices", name) for name in sorted(library.device_files("prices"))]
    held = pd.concat([prices.to_frame() for prices in lists if isinstance(prices, PriceList)])
    assert len(held) == len(listed) >= 30
    assert held["instance"].tolist() == listed["instance"].tolist()
    for column, shown in (("on_demand_usd_per_h", "on demand [USD/h]"), ("spot_usd_per_h", "spot [USD/h]")):
        assert held[column].to_numpy() == pytest.approx(listed[shown].to_numpy(), rel=1e-3, nan_ok=True)
    assert held["as_of"].dt.strftime("%Y-%m-%d").tolist() == listed["as of"].tolist()


@pytest.mark.parametrize("format_", rendering.FORMATS)
def test_an_empty_table_is_printed_too(format_: str) -> None:
    assert rendering.render(Table(columns=("a", "b"), rows=[]), format_)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="not one of table"):
        rendering.render(TABLE, "yaml")


def test_metrics_and_notes() -> None:
    table = rendering.metrics_table(a_prediction())
    assert table.columns == ("metric", "predicted", "low", "high", "unit")
    text = rendering.render(table, "md")
    assert "| latency_s.mean | 118 ms | 100 ms | 130 ms |" in text
    assert "| bytes_read | 16 KiB |  |  |" in text
    assert rendering.as_records(table)[0] == {
        "metric": "latency_s.mean",
        "predicted": 0.118,
        "low": 0.1,
        "high": 0.13,
        "unit": "s",
    }
    time, memory, bound = rendering.result_notes(a_prediction())
    assert "io 68 % ▇▇▇▇▇▇▇" in time
    assert "4 GiB (weights 3 GiB, cache 1 GiB)" in memory
    assert bound.split() == ["bound", "by", "io"]


def test_comparison(comparison: Comparison) -> None:
    records = rendering.as_records(rendering.comparison_table(comparison))
    assert [record["metric"] for record in records] == ["latency_s.mean", "io_s.mean", "bytes_read"]
    assert records[0]["error"] == pytest.approx(0.18)
    assert [record["covered"] for record in records] == [True, False, True]
    worst = rendering.as_records(rendering.comparison_table(comparison, worst_first=True))
    assert [record["metric"] for record in worst] == ["io_s.mean", "latency_s.mean", "bytes_read"]
    assert "| +18 % | ✓ |" in rendering.render(rendering.comparison_table(comparison), "md")
    summary, verdict = rendering.comparison_notes(comparison)
    assert "1 compared: median error 18.0 %" in summary
    assert verdict.strip().startswith("✗ fail: median")


# --- plots: the data ---------------------------------------------------------------------------------------


def rows_of(table: Table) -> list[dict[str, Any]]:
    return rendering.as_records(table)


def test_scatter_and_interval_data(comparison: Comparison) -> None:
    compared = comparison.comparisons
    scatter = rows_of(plots.scatter_data(compared))
    assert [(row["measured"], row["predicted"]) for row in scatter] == [(0.1, 0.118), (0.1, 0.08)]
    # the count of bytes is known exactly, and no interval
    intervals = rows_of(plots.interval_data(compared))
    assert [row["of"] for row in intervals] == ["latency", "io"]
    assert intervals[0]["low_frac"] == pytest.approx(0.0)
    assert intervals[1]["high_frac"] == pytest.approx(-0.1)
    assert [row["covered"] for row in intervals] == [True, False]


def several(
    n: int, names: Sequence[str] = ("latency_s.mean", "latency_s.p99", "step_s.mean", "io_s.mean")
) -> Comparison:
    """Return scenarios with as many metrics as a suite has; ``step_s`` repeats ``latency_s``."""
    rows = []
    for i in range(n):
        values = {name: metric(0.1 + i / 100 + (name == "io_s.mean"), 0.09, 2.0) for name in names}
        prediction = a_prediction(scenario={"name": f"s{i}"}, metrics=values)
        measured = {name: metric(value.value * 1.1, 0.1, 2.0) for name, value in values.items()}
        rows += compare.compare(prediction, a_measurement(scenario={"name": f"s{i}"}, metrics=measured))
    return compare.judge(rows)


def test_many_scenarios_make_few_series() -> None:
    compared = several(60).comparisons
    assert plots.main_metrics(compared) == ["latency_s.mean", "io_s.mean"]
    assert len(rows_of(plots.scatter_data(compared))) == 2 * 60
    intervals = plots.interval_data(compared)
    assert len(intervals.rows) == plots.MOST_INTERVALS
    assert intervals.title.endswith(f"the {plots.MOST_INTERVALS} farthest off")
    many = several(2, [f"part{i}_s.mean" for i in range(9)]).comparisons
    assert len(plots.main_metrics(many)) == 1  # they all say the same


@pytest.mark.parametrize(
    ("metric_", "said"),
    [
        ("io_s.mean", "io"),
        ("tokens_per_s", "tokens per s"),
        ("energy_j", "energy"),
        ("latency_s.p99", "latency s p99"),
    ],
)
def test_metrics_in_words(metric_: str, said: str) -> None:
    assert plots.words(metric_) == said


def test_series_differ_in_colour_and_marker() -> None:
    looks = [tuple(figures.look(i).values()) for i in range(12)]
    assert len(set(looks)) == 12


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.05, "0.05"), (64, "64"), (1024, "1024"), (1.64e8, "164 M"), (2e9, "2 G")]
)
def test_ticks_are_written_out(value: float, text: str) -> None:
    assert figures.tick_text(value) == text


def test_time_data() -> None:
    rows = rows_of(plots.time_data([a_prediction(), a_measurement()]))
    assert [(row["kind"], row["account"], row["seconds"]) for row in rows] == [
        ("prediction", "io", 0.08),
        ("prediction", "compute", 0.038),
        ("measurement", "io", 0.07),
        ("measurement", "compute", 0.03),
    ]


def test_memory_lies_beside_what_there_is() -> None:
    data = plots.memory_data([(a_prediction(), (6.0, 2.0)), (a_measurement(), (6.0, 2.0))])
    shown = {row[2]: row[3] for row in data.rows}
    assert shown == {"weights": 3 * 2.0**30, "cache": 2.0**30, "kept for the system": 2.0, "there is": 8.0}
    assert "kept" not in str(plots.memory_data([(a_prediction(), (8.0, 0.0))]).rows)
    assert plots.memory_data([(a_prediction(), None)]).rows[-1][2] == "cache"


def test_money_is_compared_where_there_is_something_to_compare() -> None:
    one, other = a_prediction(), a_prediction(scenario={"name": "large"})
    assert plots.cost_data([one]).rows == []
    data = plots.cost_data([one, other])
    assert [row[:2] for row in data.rows] == [["small", 2.5], ["large", 2.5]]
    both = plots.cost_data([one, a_measurement(metrics=one.metrics)])
    assert [row[0] for row in both.rows] == ["small, prediction", "small, measurement"]
    assert data.title == "usd per mtok, with 90 % intervals"


def test_latency_data() -> None:
    rows = rows_of(plots.latency_data(a_prediction(), a_measurement()))
    measured = [row["seconds"] for row in rows if row["kind"] == "measurement"]
    predicted = [row for row in rows if row["kind"] == "prediction"]
    assert measured == [0.09, 0.10, 0.11]
    assert [row["number"] for row in predicted] == [1, 2, 3]
    assert predicted[0] | {"number": 1} == {
        "kind": "prediction",
        "number": 1,
        "seconds": 0.118,
        "low": 0.1,
        "high": 0.13,
    }


def with_points(machine: Machine) -> Machine:
    points = tuple(
        StoragePoint(access="random", chunk_bytes=chunk, concurrency=n, read_bytes_per_s=1e8 * n)
        for chunk in (4096.0, 65536.0)
        for n in (1, 8)
    )
    storage = machine.storage.model_copy(
        update={"measurements": points, "sources": machine.storage.sources | {"measurements": "made up"}}
    )
    return machine.model_copy(update={"storage": storage})


def test_storage_data(machine: Machine) -> None:
    rows = rows_of(plots.storage_data(with_points(machine).storage))
    assert [row["read_bytes_per_s"] for row in rows if row["kind"] == "measured"] == [1e8, 8e8, 1e8, 8e8]
    law = [row for row in rows if row["kind"] == "law" and row["concurrency"] == 8]
    rates = [row["read_bytes_per_s"] for row in law]
    assert law[0]["chunk_bytes"] == pytest.approx(4096)
    assert rates == sorted(rates)


@pytest.mark.parametrize("empty", [True, False])
def test_every_figure_is_drawn_from_its_data(comparison: Comparison, machine: Machine, empty: bool) -> None:
    compared = () if empty else comparison.comparisons
    results = [] if empty else [a_prediction(), a_measurement()]
    prediction, measurement = (None, None) if empty else (a_prediction(), a_measurement())
    storage = machine.storage if empty else with_points(machine).storage
    for number, (draw, data) in enumerate(
        (
            (plots.scatter_figure, plots.scatter_data(compared)),
            (plots.interval_figure, plots.interval_data(compared)),
            (plots.spread_figure, plots.spread_data(a_prediction(metrics={} if empty else a_prediction().metrics))),
            (plots.time_figure, plots.time_data(results)),
            (plots.memory_figure, plots.memory_data([(result, (8e9, 2e9)) for result in results])),
            (plots.spread_figure, plots.cost_data(results)),
            (plots.latency_figure, plots.latency_data(prediction, measurement)),
            (plots.storage_figure, plots.storage_data(storage)),
        )
    ):
        drawn = figures.inline(draw, data, f"Plot {number} <b>", f"p{number}-")
        svg = ElementTree.fromstring(drawn)
        assert svg.attrib["aria-label"] == f"Plot {number} <b>"
        assert {"width", "height"}.isdisjoint(svg.attrib)
        ids = [element.attrib["id"] for element in svg.iter() if "id" in element.attrib]
        assert len(ids) == len(set(ids))
        assert all(name.startswith(f"p{number}-") for name in ids)
        used = {element.attrib["href"].removeprefix("#") for element in svg.iter() if "href" in element.attrib}
        assert used <= set(ids)
        assert "#0072b2" not in drawn.lower()
        assert drawn == figures.inline(draw, data, f"Plot {number} <b>", f"p{number}-"), "not the same twice"


# --- HTML --------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects what a page loads, its tags and its text outside of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.ids: set[str] = set()
        self.open: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.tags.append(tag)
        self.open.append(tag)
        self.ids.add(found.get("id") or "")
        self.loads += [found[key] or "" for key in ("src", "href") if key in found]

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words += data


def save(folder: Path, *items: Any, machine: Machine | None = None) -> Path:
    folder.mkdir(parents=True)
    run = RunFolder(folder)
    for item in items:
        run.save(item)
    if machine is not None:
        library.save_component(machine, folder / "machine.yaml")
    (folder / "scenario.yaml").write_text(f"name: small\ntitle: {NASTY!r}\n")
    return folder


def report(folders: list[Path], tmp_path: Path) -> tuple[str, Page]:
    text = run_report.write_report(folders, tmp_path / "report.html").read_text()
    return text, Page(text)


def test_a_full_report(tmp_path: Path, machine: Machine, comparison: Comparison) -> None:
    guessed = with_points(machine).model_copy(update={"title": NASTY})
    folder = save(tmp_path / "run", a_prediction(), a_measurement(), comparison, machine=guessed)
    text, page = report([folder], tmp_path)
    assert not [link for link in page.loads if not link.startswith("#")]
    assert {"answer", "plots", "warnings", "numbers", "machine", "provenance"} <= page.ids
    for wanted in (
        "✗ fail: median",
        "+18 %",
        "118 ms",
        "✓ prediction: latency_s.mean < 200 ms",
        "a number is a guess",
        "repeats lie 9 % apart",
        "A CPU <of sorts>",
        "sandtable check scenario.yaml --machine machine.yaml",
        "made up for a test",
        "fitted.first_byte",
        NASTY,
    ):
        assert wanted in page.words, wanted
    assert "<script>alert" not in text
    assert page.tags.count("script") == 1
    assert page.tags.count("h1") == 1
    assert 1 <= page.tags.count("figure") <= 7  # five, and two in folds
    assert page.tags.count("table") > page.tags.count("figure")
    # the answer and the plots stand before any table of numbers that is not a plot's own
    assert text.index('id="answer"') < text.index("<svg") < text.index('id="numbers"')


def test_a_prediction_alone_is_a_report(tmp_path: Path) -> None:
    _, page = report([save(tmp_path / "run", a_prediction())], tmp_path)
    assert "nothing to compare it with" not in page.words
    assert "usd per mtok: 2.5 USD/Mtok (2 USD/Mtok to 3 USD/Mtok)" in page.words
    assert "bound by io" in page.words
    assert "sandtable simulate scenario.yaml" in page.words


def test_several_runs_and_the_folder_of_a_suite(tmp_path: Path, comparison: Comparison) -> None:
    suite = save(tmp_path / "suite", comparison)
    other = a_prediction(scenario={"name": "large"})
    folders = [suite, save(tmp_path / "a", a_prediction(), a_measurement()), save(tmp_path / "b", other)]
    _, page = report(folders, tmp_path)
    assert "2 scenarios, predicted against measured" in page.words
    assert page.words.count("io_s.mean") >= 3


def test_the_folder_of_a_check_brings_its_scenarios(tmp_path: Path, comparison: Comparison) -> None:
    suite = save(tmp_path / "suite", comparison)
    for name in ("a", "b"):
        save(suite / name, a_prediction(scenario={"name": name, "title": f"Is {name} fast?"}), a_measurement())
    RunFolder(suite).save(CheckList(name="quick", folders=("a", "b")), CHECK)
    _, page = report([suite, suite / "a"], tmp_path)  # named twice, shown once
    assert "of quick, predicted against measured" in page.words
    assert page.words.count("Is a fast?") == page.words.count("Is b fast?") == 1
    assert "the answer of each" not in page.words  # few enough to stand open


def test_the_answer_of_a_comparison_stands_first(tmp_path: Path, comparison: Comparison) -> None:
    answer = Answer(question="Is it right?", subject="a model on a machine", verdict="Fails: 18 % too high.")
    folder = save(
        tmp_path / "run", a_prediction(), a_measurement(), comparison.model_copy(update={"answer": answer})
    )
    text, page = report([folder], tmp_path)
    assert 'class="verdict fail">Fails: 18 % too high.' in text
    assert page.words.index("Is it right?") < page.words.index("1 compared: median error 18.0 %")
    assert "what the run itself answers" in page.words


def test_a_machine_that_no_longer_loads_is_shown_as_text(tmp_path: Path) -> None:
    folder = save(tmp_path / "run", a_prediction())
    (folder / "machine.yaml").write_text("kind: machine\nname: of_yesterday\n")
    _, page = report([folder], tmp_path)
    assert "of_yesterday" in page.words


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    item = a_prediction(scenario={"name": NASTY}, machine=NASTY, warnings=(NASTY,), breakdown={NASTY: 1.0})
    text, page = report([save(tmp_path / "run", item)], tmp_path)
    assert "<script>alert" not in text
    assert page.words.count("alert('x')") >= 3


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such run folder"):
        run_report.write_report([tmp_path / "nowhere"], tmp_path / "x.html")
    with pytest.raises(ConfigError, match="run: no prediction, measurement or comparison to report"):
        run_report.write_report([save(tmp_path / "run")], tmp_path / "x.html")
    (tmp_path / "run" / "prediction.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a prediction record"):
        run_report.write_report([tmp_path / "run"], tmp_path / "x.html")


# --- traces ------------------------------------------------------------------------------------------------


def slices(data: bytes) -> dict[tuple[str, str], list[tuple[str, int, int]]]:
    """Parse a trace: (process, track) -> (name, start, end) in nanoseconds."""
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

    parsed = Trace()
    parsed.ParseFromString(data)
    processes: dict[int, str] = {}
    names: dict[int, tuple[str, str]] = {}
    found: dict[tuple[str, str], list[tuple[str, int, int]]] = {}
    open_: dict[int, list[tuple[str, int]]] = {}
    for packet in parsed.packet:
        descriptor, event = packet.track_descriptor, packet.track_event
        if packet.HasField("track_descriptor"):
            if descriptor.HasField("process"):
                processes[descriptor.uuid] = descriptor.process.process_name
            else:
                names[descriptor.uuid] = (processes[descriptor.parent_uuid], descriptor.name)
        elif event.type == TrackEvent.TYPE_SLICE_BEGIN:
            open_.setdefault(event.track_uuid, []).append((event.name, packet.timestamp))
        elif event.type == TrackEvent.TYPE_SLICE_END:
            name, start = open_[event.track_uuid].pop()
            found.setdefault(names[event.track_uuid], []).append((name, start, packet.timestamp))
        else:
            found.setdefault(names[event.track_uuid], []).append(
                ("counter", packet.timestamp, int(event.double_counter_value))
            )
    assert not any(open_.values())
    return found


def slice_(track: str, name: str, start_s: float, end_s: float) -> TraceRow:
    return TraceRow(track=track, name=name, start_s=start_s, end_s=end_s)


def test_a_trace_reads_back_as_it_was_written(tmp_path: Path) -> None:
    predicted = [slice_("storage", "neurons", 0, 1e-3), slice_("compute", "ffn", 1e-3, 2e-3)]
    predicted.append(slice_("storage", "neurons", 1e-3, 3e-3))
    measured = [slice_("storage", "neurons", 0, 1.5e-3)]
    path = tmp_path / "t.pftrace"
    timeline.write_trace(path, predicted, measured, counters={"queue": [(0.0, 3.0), (1e-3, 0.0)]})
    assert slices(path.read_bytes()) == {
        ("predicted", "storage"): [("neurons", 0, 1_000_000), ("neurons", 1_000_000, 3_000_000)],
        ("predicted", "compute"): [("ffn", 1_000_000, 2_000_000)],
        ("predicted", "queue"): [("counter", 0, 3), ("counter", 1_000_000, 0)],
        ("measured", "storage"): [("neurons", 0, 1_500_000)],
    }


def test_overlapping_slices_get_tracks_of_their_own() -> None:
    rows = [slice_("storage", "a", 0, 2), slice_("storage", "b", 1, 3), slice_("storage", "c", 2, 4)]
    found = slices(timeline.trace_bytes({"predicted": rows, "measured": []}))
    assert [name for name, *_ in found["predicted", "storage"]] == ["a", "c"]
    assert [name for name, *_ in found["predicted", "storage (2)"]] == ["b"]
    assert not any(process == "measured" for process, _ in found)
