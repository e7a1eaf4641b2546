"""Reports as a browser shows them: silent, self-contained, on a phone, in the dark, by keyboard, on paper."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Browser, chromium
from kept_runs import kept

from sandtable import api
from sandtable.report import run_report, study_report
from sandtable.studies import cheapest
from sandtable.studies.finding import Finding
from sandtable.table import Table

pytest.importorskip("matplotlib", reason="reports need matplotlib")
pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium on the PATH: apt-get install chromium")
PAGES = ("flash", "training", "suite", "findings", "cheapest", "whatif")
PHONE, A4_PX = 390, 703  # a page of A4 at 96 pixels an inch, less its margins of 12 mm
MOST_BYTES = 1_500_000
MOST_PAPER = {"flash": 7, "training": 9, "suite": 12, "findings": 3, "cheapest": 4, "whatif": 4}
# WCAG 2.2, success criterion 1.4.3: text against what lies behind it
LEAST_CONTRAST = 4.5


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


def a_finding(panels: int) -> Finding:
    rows = [
        [f"panel {p}" if panels > 1 else "", series, 2**x, 1.0 + x]
        for p in range(panels)
        for series in "ab"
        for x in range(5)
    ]
    data = Table(columns=("panel", "series", "x", "y"), rows=rows, title="Speed by batch")
    return Finding(
        name=f"made_up_{panels}",
        claim="Speed grows <with> the batch",
        holds=True,
        evidence="1 to 5",
        data=data,
        x="batch",
        y="speed",
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind."""
    base = tmp_path_factory.mktemp("pages")
    paths = {name: base / f"{name}.html" for name in PAGES}
    run_report.write_report([kept(base, "flash_laptop")], paths["flash"])
    run_report.write_report([kept(base, "slm_100m_a100")], paths["training"])
    suite = [
        kept(base, "flash_laptop", {"name": f"window_{n}", "parameters.window": n}, n / 20 - 0.1)
        for n in range(1, 6)
    ]
    run_report.write_report(suite, paths["suite"])
    study_report.write_findings("made_up", [a_finding(1), a_finding(3)], paths["findings"])
    change = api.whatif("flash_laptop", {"machine.storage": "crucial_t700_2tb"})
    study_report.write_difference(change.answer, change.before, change.after, change.changes, paths["whatif"])
    found = cheapest.search("slm_1b_cloud", machines="aws_p4d_24xlarge", most_devices=8)
    study_report.write_cheapest(found, paths["cheapest"])
    return paths


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_silent_and_asks_for_nothing(browser: Browser, pages: dict[str, Path], name: str) -> None:
    assert pages[name].stat().st_size <= MOST_BYTES
    browser.open(pages[name])
    assert browser.complaints() == []
    assert browser.requests() == [pages[name].resolve().as_uri()]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_read_aloud(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name])
    for landmark in ("header", "nav", "main", "footer"):
        assert browser.evaluate(f"document.querySelectorAll('body > {landmark}, header > {landmark}').length") == 1
    levels = browser.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert browser.evaluate("document.documentElement.lang") == "en"
    plots = browser.evaluate(
        "[...document.querySelectorAll('figure')].map(f => [f.querySelector('svg').getAttribute('role'),"
        " f.querySelector('svg').getAttribute('aria-label'), f.querySelectorAll('table tbody tr').length])"
    )
    assert plots
    assert all(role == "img" and label.startswith("Plot: ") and rows for role, label, rows in plots)
    ids = browser.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    named = browser.evaluate(
        "[...document.querySelectorAll('section')]"
        ".every(s => document.getElementById(s.getAttribute('aria-labelledby')))"
    )
    assert named


@pytest.mark.parametrize("name", PAGES)
def test_a_phone_shows_all_of_it(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name], width=PHONE, height=844)
    browser.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
    browser.evaluate("new Promise(done => setTimeout(done, 50))")  # folds tell that they opened a moment later
    assert browser.evaluate("document.documentElement.scrollWidth") <= PHONE
    widths = browser.evaluate(
        "[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().width)"
    )
    assert min(widths) > 0.8 * PHONE
    # text of plots in pixels of the screen
    sizes = browser.evaluate(
        "[...document.querySelectorAll('figure svg text')].map(t => parseFloat(getComputedStyle(t).fontSize)"
        " * t.ownerSVGElement.getBoundingClientRect().width / t.ownerSVGElement.viewBox.baseVal.width)"
    )
    assert min(sizes) >= 8
    boxes = browser.evaluate(
        "[...document.querySelectorAll('.scroll')].map(b => [b.scrollWidth > b.clientWidth + 1,"
        " b.previousElementSibling.hidden, b.tabIndex, b.getAttribute('role'), b.getAttribute('aria-label')])"
    )
    for is_wide, is_hint_hidden, tab_index, role, label in boxes:
        assert is_hint_hidden is not is_wide
        assert (tab_index, role, bool(label)) == (0, "region", True)


def test_a_table_is_sorted_by_keyboard(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["flash"])
    fold = "[...document.querySelectorAll('details')].find(d => d.textContent.includes('every metric'))"
    assert browser.evaluate(f"{fold}.open") is False
    browser.evaluate(f"{fold}.querySelector('summary').focus()")
    browser.press("Enter", 13)
    assert browser.evaluate(f"{fold}.open") is True
    browser.evaluate(f"{fold}.querySelectorAll('th button')[1].focus()")
    values = f"[...{fold}.querySelectorAll('tbody tr')].map(row => Number(row.cells[1].dataset.v))"
    for order, ordered in (("ascending", sorted), ("descending", lambda seen: sorted(seen, reverse=True))):
        browser.press("Enter", 13)
        assert browser.evaluate(f"{fold}.querySelectorAll('th')[1].ariaSort") == order
        found = browser.evaluate(values)
        assert len(found) > 20
        assert found == ordered(found)
    browser.evaluate(f"{fold}.querySelectorAll('th button')[0].focus()")
    browser.press("Enter", 13)
    names = browser.evaluate(f"[...{fold}.querySelectorAll('tbody tr')].map(row => row.cells[0].textContent)")
    assert names == sorted(names)
    assert browser.evaluate(f"{fold}.querySelectorAll('th')[1].ariaSort") is None


def test_the_first_key_skips_to_the_answer(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["flash"])
    browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.getAttribute('href')") == "#main"
    assert browser.evaluate("document.activeElement.getBoundingClientRect().left") >= 0


def luminance(colour: str) -> float:
    """Return the relative luminance of ``rgb(r, g, b)``, WCAG 2.2."""
    shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_plots_are_readable_in_light_and_dark(
    browser: Browser, pages: dict[str, Path], scheme: str
) -> None:
    browser.open(pages["suite"], prefers_color_scheme=scheme)
    behind = luminance(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (behind < 0.5) is (scheme == "dark")
    for selector in ("body", "figure svg text", ".soft", "nav a", "summary", ".verdict", "caption"):
        colour = "fill" if "svg" in selector else "color"
        text = luminance(browser.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{colour}"))
        contrast = (max(text, behind) + 0.05) / (min(text, behind) + 0.05)
        assert contrast >= LEAST_CONTRAST, (selector, contrast)
    drawn = browser.evaluate(
        "[...document.querySelectorAll('figure svg [style*=\"var(--c\"]')].map(e => getComputedStyle(e))"
        ".map(s => s.fill === 'none' ? s.stroke : s.fill)"
    )
    assert drawn
    for colour in set(drawn):
        mark = luminance(colour)
        assert (max(mark, behind) + 0.05) / (min(mark, behind) + 0.05) > 1.9, colour


@pytest.mark.parametrize("name", PAGES)
def test_paper_clips_nothing(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name], width=A4_PX)
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate("document.querySelectorAll('details:not(.appendix):not([open])').length") == 0
    beyond = browser.evaluate(
        "[...document.querySelectorAll('td, th, pre, p, li, svg')]"
        f".filter(e => e.getBoundingClientRect().right > {A4_PX} + 1)"
        ".map(e => e.textContent.slice(0, 80))"
    )
    assert beyond == []
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
    printed = browser.pdf()
    counts = [int(count) for count in re.findall(rb"/Count (\d+)", printed)]
    assert 1 <= max(counts) <= MOST_PAPER[name]


def test_a_page_may_not_ask_the_network(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["flash"])
    asked = "fetch('http://127.0.0.1:9/').then(() => 'let through', () => 'refused')"
    assert browser.evaluate(asked) == "refused"
    assert any("Content Security Policy" in text for text in browser.complaints())


def test_the_answer_stands_before_the_first_plot_and_the_tables_in_folds(
    browser: Browser, pages: dict[str, Path]
) -> None:
    for name in ("flash", "training", "suite"):
        browser.open(pages[name])
        order = browser.evaluate("[...document.querySelectorAll('main > section')].map(s => s.id)")
        assert order == ["answer", "plots", "warnings", "numbers", "machine", "provenance"]
        assert 1 <= browser.evaluate("document.querySelectorAll('#plots figure').length") <= 5
        rows = browser.evaluate(
            "[...document.querySelectorAll('tbody tr')].filter(r => r.checkVisibility()).length"
        )
        assert rows <= 12, "a long table lies open"
