"""Reading rows: cells as they stand, lines as an editor counts them, and a sentence for what is no table."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sandtable.errors import ConfigError, NoDevice
from sandtable.published import rows, scoring
from sandtable.published.rows import MalformedRow, Rows, read_rows


def read(folder: Path, text: str) -> Rows:
    path = folder / "some.csv"
    path.write_text(text, encoding="utf-8", newline="")
    return read_rows(path)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a,b\n1,2\n\n3,4\n", {2: ("1", "2"), 4: ("3", "4")}),
        ("\ufeffa,b\r\n1,2\r\n", {2: ("1", "2")}),
        ("a,b\n1\n,\n 2 ,x", {2: ("1", ""), 4: ("2", "x")}),
        ('a,b\n"two\nlines, one cell",2\n3,"say ""4"""\n', {3: ("two\nlines, one cell", "2"), 4: ("3", 'say "4"')}),
        ("a,b\nNA,None\nnan,1e3\n", {2: ("NA", "None"), 3: ("nan", "1e3")}),
        ("a,b\n1,2,\n", {2: ("1", "2")}),
        ("a,b\n", {}),
    ],
)
def test_cells_and_lines(tmp_path: Path, text: str, wanted: dict[int, tuple[str, str]]) -> None:
    found = read(tmp_path, text)
    assert {row.line: (row.text("a"), row.text("b")) for row in found} == wanted
    assert list(found.frame.columns) == ["a", "b"]
    assert list(found.frame.index) == [row.line for row in found]


@pytest.mark.parametrize("first", [True, False])
def test_a_row_with_more_cells_than_the_file_has_columns_is_malformed(tmp_path: Path, first: bool) -> None:
    good, bad = "1,2\n", "1,2,3,4,5,6\n"
    found = read(tmp_path, "a,b\n" + (bad + good if first else good + bad))
    with pytest.raises(MalformedRow):
        found[0 if first else 1].text("a")
    assert found[1 if first else 0].text("b") == "2"
    assert [row.line for row in found[:]] == [2, 3]


def test_every_shipped_file_is_read_as_the_csv_module_reads_it() -> None:
    adapters = [(name, adapter.shipped()) for name, adapter in scoring.adapters().items()]
    shipped = [folder / f"{name}.csv" for name, folder in adapters if folder is not None]
    assert len(shipped) >= 4
    for path in shipped:
        with path.open(newline="", encoding="utf-8") as file:
            assert [dict(row.cells) for row in read_rows(path)] == list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a\n\xff\xfe\x00", "no UTF-8 text"),
        (b"", "the file is empty"),
        (b'a,b\n"1,2\n3,4\n', "cannot be read"),
        (b"a,b,a\n1,2,3\n", "column 'a' stands twice"),
    ],
)
def test_what_is_no_table_is_one_sentence(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "some.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_rows(path)
    with pytest.raises(ConfigError, match="this is a folder"):
        read_rows(tmp_path)


# --- Parquet -----------------------------------------------------------------------------------------------


def test_parquet_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> pd.DataFrame:
        raise ImportError("no pyarrow")

    monkeypatch.setattr(pd, "read_parquet", refuse)
    with pytest.raises(NoDevice, match=r"pip install -e \x27\.\[parquet\]\x27"):
        read_rows(tmp_path / "some.parquet")


def test_csv_comes_before_parquet(tmp_path: Path) -> None:
    assert rows.file_of(tmp_path, "some") is None
    (tmp_path / "some.parquet").write_bytes(b"")
    assert rows.file_of(tmp_path, "some") == tmp_path / "some.parquet"
    (tmp_path / "some.csv").write_bytes(b"")
    assert rows.file_of(tmp_path, "some") == tmp_path / "some.csv"


def as_numbers(column: pd.Series[str]) -> pd.Series[Any]:
    """Columns of nothing but numbers and gaps as floats, as notebooks write them."""
    try:
        return column.replace("", "nan").map(float)
    except ValueError:
        return column


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("name", ["op_torch_matmul", "slm_paper"])
def test_a_parquet_file_scores_as_its_csv(name: str, typed: bool, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    folder = scoring.adapters()[name].shipped()
    assert folder is not None
    frame = pd.read_csv(folder / f"{name}.csv", dtype=str, keep_default_na=False)
    if typed:
        frame = frame.apply(as_numbers)
        assert frame.dtypes.eq("float64").any()
    frame.to_parquet(tmp_path / f"{name}.parquet")
    assert scoring.run(tmp_path, name).to_json() == scoring.run(folder, name).to_json()


def test_a_parquet_file_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "some.parquet").write_bytes(b"no such thing")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_rows(tmp_path / "some.parquet")
