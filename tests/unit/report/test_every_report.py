"""Everything that is shipped is shown and reported: every scenario, device, stack, and a machine calibrated here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from timed import calibrated_for_training

from sandtable import api
from sandtable.contracts import run_command
from sandtable.hardware import Machine, library
from sandtable.report import figures, listing, rendering, run_report
from sandtable.results import Prediction
from sandtable.runs.run_folder import RunFolder
from sandtable.workload import scenarios

pytest.importorskip("matplotlib", reason="reports need matplotlib")
MOST_BYTES = 1_500_000
CALIBRATED: list[str] = []  # the machine's file, made once


@pytest.fixture
def here(in_tmp: Path, machine: Machine) -> Path:
    """A folder with a machine that is calibrated for flash inference and for training."""
    if not CALIBRATED:
        own = calibrated_for_training(machine).model_copy(update={"name": "this_machine"})
        library.save_component(own, Path("this_machine.yaml"))
        CALIBRATED.append(Path("this_machine.yaml").read_text())
    Path("this_machine.yaml").write_text(CALIBRATED[0])
    return in_tmp


class Words(HTMLParser):
    """The text of a page outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, _: list[tuple[str, str | None]]) -> None:
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.words.append(data.strip())


def kept(name: str) -> tuple[Prediction, Path]:
    """Predict a scenario, and keep the run as `simulate` does."""
    found = api.simulate(name)
    folder = RunFolder.create(name)
    folder.save(found.result)
    folder.save_inputs(found.case.scenario, found.case.machine)
    return found.prediction, folder.path


@pytest.mark.parametrize("name", sorted(scenarios.files()))
def test_every_scenario_is_shown_and_reported(here: Path, name: str) -> None:
    prediction, folder = kept(name)
    shown = run_command("show", str(folder))
    assert shown.code == 0, shown.err
    text = run_report.write_report([folder], here / "report.html").read_text()
    assert len(text) < MOST_BYTES
    page = Words(text)
    assert prediction.answer is not None
    for line in (str(prediction.scenario["title"]), prediction.answer.subject, *prediction.answer.headlines):
        assert line in page.words, line
    assert 1 <= text.count("<svg") <= 6
    assert text.index('class="card"') < text.index("<svg") < text.index('id="numbers"')
    # terminal and page count the same guesses
    said = re.findall(r"(\d+) numbers of this machine are guesses", " ".join(prediction.warnings))
    counted = re.findall(r"(\d+) numbers that results rest on are guesses", " ".join(page.words))
    assert said == counted == ([str(len(prediction.guesses))] if prediction.guesses else [])
    if prediction.guesses:
        assert f"the {len(prediction.guesses)} guesses" in page.words


def components() -> Iterator[str]:
    return iter(sorted(library.device_files()))


def test_every_device_is_shown() -> None:
    """Machines with their parts, stacks, accelerators, links, price lists: all numbers have a text and a source."""
    for name in components():
        table = listing.device_table(listing.find_device(name))
        assert rendering.render(table, "csv"), name
        assert all(row[4] for row in table.rows), name


@pytest.mark.parametrize("name", sorted(library.device_files("stack")))
def test_every_stack_is_shown_by_its_command(name: str) -> None:
    ran = run_command("show", name)
    assert ran.code == 0, ran.err
    assert len(ran.out.splitlines()) > 5


def test_a_calibrated_machine_is_shown_with_its_constants(here: Path) -> None:
    ran = run_command("show", "this_machine.yaml")
    assert ran.code == 0, ran.err
    assert "fitted.operators.gemm.pytorch_cpu" in ran.out
    _, folder = kept("slm_local")
    text = run_report.write_report([folder], here / "report.html").read_text()
    assert "fitted.operators.gemm.pytorch_cpu" in text
    assert "fitted constants" in text


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        (
            "whatif flash_laptop --set machine.storage=crucial_t700_2tb",
            "Times as much as before, with 90 % intervals",
        ),
        ("cheapest slm_1b_cloud --machines aws_p4d_24xlarge --most-devices 8", "Time against money"),
    ],
    ids=["whatif", "cheapest"],
)
def test_what_is_no_run_writes_a_report_too(here: Path, command: str, wanted: str) -> None:
    ran = run_command(*command.split(), "--report", "out/page.html")
    assert ran.code == 0, ran.err
    assert "report: out/page.html" in ran.err
    text = Path("out/page.html").read_text()
    assert wanted in Words(text).words
    assert text.index('class="card"') < text.index("<svg") < text.index('id="numbers"')


def test_the_same_run_gives_the_same_page(here: Path) -> None:
    _, folder = kept("flash_laptop")
    first = run_report.write_report([folder], here / "first.html").read_bytes()
    assert first == run_report.write_report([folder], here / "second.html").read_bytes()
    assert figures.PREDICTED.encode() in first  # in the palette, which is all that names colours
