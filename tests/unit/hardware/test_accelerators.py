"""An accelerator is one file, and a machine names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sandtable.errors import ConfigError
from sandtable.hardware import Accelerators, Machine, library, plain_name
from sandtable.report import listing

CARD = """\
kind: accelerator
name: card
title: A card
published_as:
  - Card 1
  - card-one
datasheet: {family: gpu, cores: 10, peak: {float32: 1 TFLOP/s}}
memory:
  datasheet: {technology: HBM, capacity: 10 GB, bandwidth: 100 GB/s}
  sources: {datasheet: made up}
link: pcie4_x16
peer_link: nvlink3
sources: {datasheet: made up}
"""
HALF = """\
kind: accelerator
name: half
title: The card with half of the memory
variant_of: card
datasheet: {tdp: 99 W}
memory:
  datasheet: {technology: HBM, capacity: 5 GB, bandwidth: 100 GB/s}
  sources: {datasheet: made up}
sources: {datasheet.tdp: seen}
"""
BOX = """\
kind: machine
name: box
title: A box
processor: amd_epyc_9654
memory: ddr5_4800_12ch_384gib
storage: samsung_990_pro_2tb
sources: {}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "accelerators").mkdir()
    monkeypatch.setenv(library.SEARCH_PATH_VARIABLE, str(tmp_path))
    for name, text in {"card": CARD, "half": HALF}.items():
        (tmp_path / "accelerators" / f"{name}.yaml").write_text(text)
    return tmp_path


def machine(folder: Path, accelerator: str, **overrides: Any) -> Machine:
    path = folder / "box.yaml"
    path.write_text(f"{BOX}accelerator: {accelerator}\n")
    return library.load_machine(str(path), overrides)


def accelerators(folder: Path, text: str, **overrides: Any) -> Accelerators:
    found = machine(folder, text, **overrides).accelerator
    assert found is not None
    return found


def test_its_memory_and_links_come_with_it(folder: Path) -> None:
    box = machine(folder, "{device: card, n: 2}")
    found = box.accelerator
    assert found is not None
    assert found.processor is found.device
    assert (found.n, found.memory.name, found.memory.datasheet.capacity_bytes) == (2, "card_memory", 10e9)
    assert found.link.name == "pcie4_x16"
    assert box.group_link is not None
    assert box.group_link.name == "nvlink3"
    assert {"card", "card_memory", "pcie4_x16", "nvlink3"} <= {part.name for part in box.components()}


def test_one_alone_has_no_peers(folder: Path) -> None:
    found = accelerators(folder, "{device: card}")
    assert found.peer_link is None
    several = found.model_copy(update={"n": 2}).peer_link
    assert several is not None
    assert several.name == "nvlink3"


def test_a_machine_may_wire_it_otherwise(folder: Path) -> None:
    found = accelerators(folder, "{device: card, n: 2, link: pcie3_x16, peer_link: nvlink4}")
    assert found.peer_link is not None
    assert (found.link.name, found.peer_link.name) == ("pcie3_x16", "nvlink4")


def test_another_accelerator_is_one_setting(folder: Path) -> None:
    found = accelerators(folder, "{device: card, n: 2}", **{"accelerator.device": "nvidia_h100_sxm"})
    assert found.peer_link is not None
    assert (found.device.name, found.n, found.peer_link.name) == ("nvidia_h100_sxm", 2, "nvlink4")
    assert found.memory.datasheet.capacity_bytes == 80 * 2**30


def test_a_variant_takes_what_it_does_not_say(folder: Path) -> None:
    whole, half = library.load_accelerator("card"), library.load_accelerator("half")
    assert half.datasheet == whole.datasheet.model_copy(update={"tdp_w": 99.0})
    assert half.memory.datasheet.capacity_bytes == 5e9
    assert half.link == whole.link
    assert half.peer_link == whole.peer_link
    assert half.published_as == ()
    assert half.sources == {"datasheet": "made up", "datasheet.tdp": "seen"}


def test_a_variant_shares_the_constants_of_its_chip() -> None:
    big, small = library.load_accelerator("nvidia_a100_sxm"), library.load_accelerator("nvidia_a100_sxm_40gb")
    assert small.fitted == big.fitted
    assert small.fitted is not None
    assert small.memory.datasheet.bandwidth_bytes_per_s < big.memory.datasheet.bandwidth_bytes_per_s


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("variant_of: card", "variant_of: cart", r"half.yaml:4: .*'cart' \(did you mean 'card'"),
        ("variant_of: card", "variant_of: nvidia_a100_sxm_40gb", "half.yaml:4: .* write nvidia_a100_sxm"),
        ("5 GB, bandwidth: 100 GB/s", "5 GB", r"half.yaml:7: memory.datasheet.bandwidth: this field is missing"),
        ("  sources: {datasheet: made up}\n", "", r"memory: datasheet\.capacity has no source"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_line(folder: Path, old: str, new: str, words: str) -> None:
    path = folder / "accelerators" / "half.yaml"
    path.write_text(HALF.replace(old, new))
    with pytest.raises(ConfigError, match=words):
        library.load_file(path)


@pytest.mark.parametrize(
    ("section", "advice"),
    [
        ("{processor: card, memory: hbm, link: pcie4_x16, n: 8}", "write 'accelerator: {device: card, n: 8}'"),
        ("{processor: card_2, memory: hbm}", "write 'accelerator: {device: <name of a file"),
        # as calibration wrote it: the parts themselves instead of their names
        ("{processor: {kind: processor}, memory: {kind: memory}}", "'sandtable calibrate --only gpu' measures"),
    ],
)
def test_parts_named_one_by_one_are_refused_with_what_to_write(folder: Path, section: str, advice: str) -> None:
    with pytest.raises(ConfigError) as error:
        machine(folder, section)
    assert "box.yaml:8: " in str(error.value)
    assert advice in str(error.value)


def test_published_names_find_it() -> None:
    for text in ("CARD 1", "card one", "nvidia card_one"):
        found = library.accelerator_called(text)
        assert found is not None
        assert found.name == "card"
    assert library.accelerator_called("card") is None, "what a file is called here is no published name"
    assert plain_name(" NVIDIA A100-SXM4-80GB") == "a100_sxm4_80gb"


def test_memory_of_the_host_has_the_size_that_the_host_has(folder: Path) -> None:
    box = machine(folder, "{device: apple_m1_max_gpu}")
    assert box.accelerator is not None
    assert box.accelerator.memory is box.memory


def test_it_is_written_and_read_back(folder: Path) -> None:
    box = machine(folder, "{device: half, n: 2, link: pcie3_x16}")
    library.save_component(box, folder / "copy.yaml")
    assert library.load_machine(str(folder / "copy.yaml")) == box


@pytest.mark.parametrize("name", ["card", "vllm", "generic", "dgx_a100_40gb", "pcie5_x8"])
def test_every_number_is_shown(name: str) -> None:
    """Keys that contain dots, such as ``gemm.bfloat16``, too."""
    device = listing.find_device(name)
    shown = {(row[0], row[1]) for row in listing.device_table(device).rows}
    assert len(shown) >= sum(1 for part in (device, *device.components()) for _ in part.guesses())
