import os
from pathlib import Path

import pytest

from sandtable import hardware, yaml_files
from sandtable.errors import ConfigError, UnknownName
from sandtable.hardware import library
from sandtable.system import atomic_files

DRIVE = """\
schema: 1
kind: storage
name: drive
title: A drive
datasheet:
  interface: NVMe
  capacity: 1 TB
  sequential_read: 5 GB/s
sources:
  datasheet: a data sheet
"""


def write(tmp_path: Path, text: str, name: str = "drive.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def failure(tmp_path: Path, text: str, kind: str | None = None) -> str:
    """Load ``text`` as a device file and return the error without the folder that it leads with."""
    with pytest.raises(ConfigError) as error:
        library.load_file(write(tmp_path, text), kind)
    return str(error.value).removeprefix(f"{tmp_path}{os.sep}")


def test_a_good_file_loads(tmp_path: Path) -> None:
    drive = library.load_file(write(tmp_path, DRIVE))
    assert isinstance(drive, hardware.Storage)
    assert drive.datasheet.capacity_bytes == 1e12


def test_a_misspelt_field_names_line_path_and_the_right_word(tmp_path: Path) -> None:
    text = DRIVE.replace("sequential_read", "sequental_read")
    assert failure(tmp_path, text) == (
        "drive.yaml:8: datasheet.sequental_read: unknown field "
        "(did you mean 'sequential_read', 'sequential_write', 'slice_read'?)"
    )


def test_a_missing_unit(tmp_path: Path) -> None:
    assert failure(tmp_path, DRIVE.replace("1 TB", "1000")) == (
        "drive.yaml:7: datasheet.capacity: a unit is required: write it like '1 kB', not as a bare number"
    )


def test_a_missing_field(tmp_path: Path) -> None:
    text = DRIVE.replace("  capacity: 1 TB\n", "")
    assert failure(tmp_path, text) == "drive.yaml:5: datasheet.capacity: this field is missing"


def test_a_missing_source(tmp_path: Path) -> None:
    message = failure(tmp_path, DRIVE.replace("  datasheet: a", "  power: a"))
    assert message.startswith("drive.yaml: datasheet.capacity has no source: add 'sources: {datasheet.capacity: ")


def test_a_duplicate_key(tmp_path: Path) -> None:
    text = DRIVE.replace("name: drive\n", "name: drive\nname: drive\n")
    assert failure(tmp_path, text) == "drive.yaml:4: duplicate key 'name': keep one of them"


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text\n", "3\n"])
def test_not_a_mapping(tmp_path: Path, text: str) -> None:
    assert failure(tmp_path, text) == "drive.yaml:1: a mapping of keys to values is needed"


def test_not_yaml(tmp_path: Path) -> None:
    assert failure(tmp_path, "a: [1, 2\nb: 3\n").startswith("drive.yaml:2: not valid YAML: ")


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "drive.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="this is no UTF-16-LE text"):
        library.load_file(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        library.load_file(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="no such file"):
        library.load_component("storage", str(tmp_path / "absent.yaml"))


def test_the_wrong_kind(tmp_path: Path) -> None:
    assert failure(tmp_path, DRIVE, "memory") == "drive.yaml:2: this is a storage, but a memory is needed"


def test_an_unknown_kind(tmp_path: Path) -> None:
    text = DRIVE.replace("kind: storage", "kind: storrage")
    assert failure(tmp_path, text) == "drive.yaml:2: unknown kind 'storrage' (did you mean 'storage'?)"
    assert failure(tmp_path, DRIVE.replace("kind: storage\n", "")).startswith("drive.yaml: 'kind' is missing")


def test_the_name_must_be_that_of_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "storage"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"name must equal the file's name: write 'name: other'"):
        library.load_file(write(folder, DRIVE, "other.yaml"))


def test_an_unknown_device_suggests_near_names() -> None:
    with pytest.raises(UnknownName) as error:
        library.load_accelerator("nvidia_h100_sxn")
    assert str(error.value).startswith("no accelerator named 'nvidia_h100_sxn' (did you mean 'nvidia_h100_sxm'")
    assert error.value.exit_code == 2


def test_an_unknown_part_of_a_machine_names_the_line(tmp_path: Path) -> None:
    text = "kind: machine\nname: box\ntitle: A box\nprocessor: intel_xeon_848\nmemory: ddr5_5600_2ch_32gib\n"
    with pytest.raises(ConfigError) as error:
        library.load_file(write(tmp_path, text, "box.yaml"))
    assert "box.yaml:4: no processor named 'intel_xeon_848' (did you mean 'intel_xeon_8480'" in str(error.value)


def test_an_unknown_variant_lists_the_known_ones() -> None:
    with pytest.raises(UnknownName, match=r"no variant of aws_i4i named '5xlarge' \(did you mean"):
        library.load_component("storage", "aws_i4i@5xlarge")
    with pytest.raises(UnknownName, match="variant of ufs_4_0_512gb"):
        library.load_component("storage", "ufs_4_0_512gb@large")


def test_this_machine_is_explained_when_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="run 'sandtable calibrate --quick' first"):
        library.load_machine("this_machine")


def test_the_search_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, DRIVE.replace("name: drive", "name: aws_i3"), "aws_i3.yaml")
    (tmp_path / "storage").mkdir()
    write(tmp_path / "storage", DRIVE.replace("name: drive", "name: mine"), "mine.yaml")
    monkeypatch.setenv("SANDTABLE_PATH", str(tmp_path))
    assert library.load_component("storage", "mine").title == "A drive"


def test_scenarios_on_the_search_path_are_no_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, DRIVE, "drive.yaml")
    write(tmp_path, "name: mine\nworkload: flash_inference\n", "mine.yaml")
    monkeypatch.setenv("SANDTABLE_PATH", str(tmp_path))
    assert "drive" in library.device_files("storage")
    assert "drive" not in library.device_files("stack")
    assert "mine" not in library.device_files()


def test_what_a_reader_changes_is_its_own() -> None:
    text = "a: 1\nb: {c: 2}\n"
    first = yaml_files.parse_yaml(text, "x.yaml")
    first["b"]["c"] = 3
    again = yaml_files.parse_yaml(text, "y.yaml")
    assert again["b"]["c"] == 2
    assert yaml_files.line_of(again, ["b", "c"]) == 2


def test_yaml_is_version_1_2(tmp_path: Path) -> None:
    data = yaml_files.parse_yaml("country: no\nrate: 989e12\nyes: on\n", "x.yaml")
    assert yaml_files.plain(data) == {"country": "no", "rate": 989e12, "yes": "on"}


def test_writing_and_reading_back_changes_nothing(tmp_path: Path) -> None:
    machine = library.load_machine("aws_i4i_4xlarge")
    library.save_component(machine, tmp_path / "box.yaml")
    assert library.load_file(tmp_path / "box.yaml") == machine
    assert library.digest(library.load_file(tmp_path / "box.yaml")) == library.digest(machine)


class TestWriteAtomically:
    def test_it_writes_and_makes_the_folder(self, tmp_path: Path) -> None:
        atomic_files.write_atomically(tmp_path / "new" / "file", "text")
        assert (tmp_path / "new" / "file").read_text() == "text"
        assert [p.name for p in (tmp_path / "new").iterdir()] == ["file"]

    def test_a_failed_write_leaves_the_old_file_and_no_part(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write(tmp_path, "old", "file")

        def fail(*_: object) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            atomic_files.write_atomically(path, "new")
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["file"]
