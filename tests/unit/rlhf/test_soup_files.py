"""Soups of whole checkpoints: any layout of files, what is refused, what is left behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from checkpoint_maker import Stored, read_safetensors, write_folder, write_safetensors

from sandtable.errors import ConfigError, DoesNotFit
from sandtable_kernels.files import dtypes
from sandtable_workloads.rlhf.soups import SoupOptions, greedy_soup, soup, soup_pass
from sandtable_workloads.rlhf.soups.checkpoint_files import header_of, open_checkpoint
from sandtable_workloads.rlhf.soups.soup_layout import laid_out

SMALL = SoupOptions(memory_bytes=1.5e6)  # blocks of the shortest kind, so that tensors cross them


def made_up(seed: int, n_large: int = 90_001) -> dict[str, Stored]:
    """Tensors of every type; whole numbers and the mask are those of every seed."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Any:
        return rng.normal(size=shape).astype(np.float32)

    return {
        "embed": ("F16", normal(n_large).astype(np.float16)),
        "norm": ("F32", normal(33)),
        "empty": ("F16", np.zeros((0, 4), np.float16)),
        "proj": ("BF16", dtypes.encode(normal(300, 411), "bfloat16")),
        "positions": ("I64", np.arange(60_007)),
        "mask": ("BOOL", np.arange(13) % 2 == 0),
        "scale": ("F64", rng.normal(size=(3, 5))),
        "scalar": ("F16", np.asarray(rng.normal(), np.float16)),
        "head": ("F16", normal(71, 1000).astype(np.float16)),
    }


def expected(models: list[dict[str, Stored]], weights: list[float]) -> dict[str, Stored]:
    """Average in NumPy, float32 for 16 bits."""
    found = {}
    for name, (dtype, first) in models[0].items():
        each = [model[name][1] for model in models]
        if dtype in ("I64", "BOOL"):
            found[name] = dtype, first
        elif dtype in ("F32", "F64"):
            total = sum(w * x.astype(np.float64) for w, x in zip(weights, each, strict=True))
            found[name] = dtype, np.asarray(total, first.dtype)
        elif dtype == "F16":
            total = sum(np.float32(w) * x.astype(np.float32) for w, x in zip(weights, each, strict=True))
            found[name] = dtype, np.asarray(total, np.float16)
        else:
            total = sum(np.float32(w) * dtypes.decode(x, "bfloat16") for w, x in zip(weights, each, strict=True))
            found[name] = dtype, dtypes.encode(np.asarray(total, np.float32), "bfloat16")
    return found


def assert_same(found: dict[str, Stored], wanted: dict[str, Stored]) -> None:
    assert found.keys() == wanted.keys()
    for name, (dtype, values) in wanted.items():
        assert found[name][0] == dtype, name
        np.testing.assert_array_equal(found[name][1], values, err_msg=name)


def all_of(folder: Path) -> dict[str, Stored]:
    return {name: each for file in folder.glob("*.safetensors") for name, each in read_safetensors(file).items()}


def in_shards(tensors: dict[str, Stored], n: int) -> list[dict[str, Stored]]:
    names = list(tensors)
    return [{name: tensors[name] for name in names[place::n]} for place in range(n)]


@pytest.mark.parametrize("options", [SMALL, None])
@pytest.mark.parametrize("shards", [(1, 1, 1), (3, 3, 3), (2, 1, 4)])
@pytest.mark.parametrize("odd", [False, True])
def test_any_layout_of_files_gives_the_average_of_numpy(
    tmp_path: Path, options: SoupOptions | None, shards: tuple[int, ...], odd: bool
) -> None:
    models, weights = [made_up(seed) for seed in range(3)], [0.5, 0.75, -0.25]
    backwards = dict(reversed(models[1].items()))
    for place, model in enumerate((models[0], backwards, models[2])):
        write_folder(tmp_path / f"m{place}", in_shards(model, shards[place]), odd=odd and place == 1)
    made = soup([tmp_path / f"m{place}" for place in range(3)], tmp_path / "out", weights, options=options)
    assert_same(all_of(tmp_path / "out"), expected(models, weights))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == shards[0]
    assert made.bytes_read == sum(values.nbytes for model in models for _, values in model.values())
    assert made.bytes_written == sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m0", "m1", "m2", "out"]


def test_the_file_is_one_of_the_safetensors_library(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy", reason="the extra test has it")
    models = [{name: each for name, each in made_up(seed).items() if each[0] != "BF16"} for seed in range(2)]
    for place, model in enumerate(models):
        library.save_file({name: values for name, (_, values) in model.items()}, tmp_path / f"{place}.safetensors")
    soup([tmp_path / "0.safetensors", tmp_path / "1.safetensors"], tmp_path / "out.safetensors")
    found = library.load_file(tmp_path / "out.safetensors")
    for name, (_, values) in expected(models, [0.5, 0.5]).items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_type_of_the_result_may_be_another(tmp_path: Path, dtype: str) -> None:
    models = [{"w": made_up(seed)["embed"], "positions": made_up(0)["positions"]} for seed in range(2)]
    for place, model in enumerate(models):
        write_folder(tmp_path / f"m{place}", [model])
    soup([tmp_path / "m0", tmp_path / "m1"], tmp_path / "out", options=SoupOptions(dtype=dtype, memory_bytes=1.2e6))
    total = sum(np.float32(0.5) * model["w"][1].astype(np.float32) for model in models)
    found = all_of(tmp_path / "out")
    np.testing.assert_array_equal(
        dtypes.decode(found["w"][1].view(dtypes.storage_dtype(dtype)), dtype).ravel(),
        dtypes.decode(dtypes.encode(np.asarray(total), dtype), dtype),
    )
    assert found["positions"][0] == "I64"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype


def test_one_file_is_a_soup_of_files_with_its_metadata(tmp_path: Path) -> None:
    models = [{"w": made_up(seed)["embed"]} for seed in range(2)]
    for place, model in enumerate(models):
        write_safetensors(tmp_path / f"{place}.safetensors", model, metadata={"w2": "w"})
    soup([tmp_path / "0.safetensors", tmp_path / "1.safetensors"], tmp_path / "out.safetensors", [0.25, 0.75])
    assert_same(read_safetensors(tmp_path / "out.safetensors"), expected(models, [0.25, 0.75]))
    metadata = open_checkpoint(tmp_path / "out.safetensors").metadata[tmp_path / "out.safetensors"]
    assert metadata == {"format": "pt", "w2": "w"}


def test_what_goes_with_the_weights_comes_from_the_first_model(tmp_path: Path) -> None:
    for place in range(2):
        folder = write_folder(
            tmp_path / f"m{place}", [{"w": made_up(place)["embed"]}], config={"max_length": place}
        )
        (folder / "generation_config.json").write_text(f'{{"place": {place}}}')
        (folder / "optimizer.bin").write_text("large")
    said: list[str] = []
    soup([tmp_path / "m0", tmp_path / "m1"], tmp_path / "out", options=SoupOptions(say=said.append))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "soup.json", "tokenizer.json"}
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"place": 0}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_length"] == 0
    assert list(json.loads((tmp_path / "out" / "soup.json").read_text())["weights"].values()) == [0.5, 0.5]
    assert "differ in max_length: the first one's is kept" in said[0]
    assert (tmp_path / "out").stat().st_mode & 0o777 == (tmp_path / "m0").stat().st_mode & 0o777


# --- memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_models", [2, 12])
def test_buffers_stay_within_what_is_given(tmp_path: Path, n_models: int) -> None:
    file = tmp_path / "m.safetensors"
    write_safetensors(file, {"w": ("F16", np.ones(8 << 20, np.float16))})
    models = [tmp_path / f"m{place}.safetensors" for place in range(n_models)]
    for path in models:
        path.hardlink_to(file)
    for memory in (5e6, 20e6):
        out = tmp_path / f"out{memory:.0f}.safetensors"
        made = soup(models, out, options=SoupOptions(memory_bytes=memory))
        assert 0.3 * min(memory, n_models * 16e6) < made.buffer_bytes <= memory
        assert_same(read_safetensors(out), read_safetensors(file))


def test_too_little_memory_is_a_sentence(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "m.safetensors", {"w": ("F16", np.ones(8, np.float16))})
    with pytest.raises(ConfigError, match=r"buffers for 2 models need 8\.02 KiB and may take .*: give more memory"):
        soup([tmp_path / "m.safetensors"] * 2, tmp_path / "o.safetensors", options=SoupOptions(memory_bytes=5e3))


def test_many_small_tensors_in_another_order_stay_within_memory_too(tmp_path: Path) -> None:
    tensors: dict[str, Stored] = {f"w{i}": ("F16", np.full(40_000, i, np.float16)) for i in range(100)}
    write_safetensors(tmp_path / "a.safetensors", tensors)
    write_safetensors(tmp_path / "b.safetensors", dict(reversed(tensors.items())))
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    made = soup(files, tmp_path / "out.safetensors", options=SoupOptions(memory_bytes=4e6))
    assert 2e6 < made.buffer_bytes <= 4e6
    assert_same(read_safetensors(tmp_path / "out.safetensors"), tensors)


def test_blocks_are_joined_where_models_have_one_layout(tmp_path: Path) -> None:
    tensors: dict[str, Stored] = {f"w{i}": ("F16", np.ones(100, np.float16)) for i in range(50)}
    for name in ("a", "b"):
        write_safetensors(tmp_path / f"{name}.safetensors", tensors)
    write_safetensors(tmp_path / "c.safetensors", dict(reversed(tensors.items())))
    a, b, c = (open_checkpoint(tmp_path / f"{name}.safetensors") for name in "abc")
    assert [len(block.pieces) for block in laid_out([a, b], None)[0].blocks(1 << 20)] == [1]
    assert [len(block.pieces) for block in laid_out([a, c], None)[0].blocks(1 << 20)] == [50]
    assert [block.n_bytes for block in laid_out([a, b], None)[0].blocks(4096)] == [4096, 4096, 1808]


def test_headers_fill_pages() -> None:
    for n in (1, 50, 200):
        header = header_of([(f"tensor{i}", "F16", (3,)) for i in range(n)], {"format": "pt"})
        assert len(header) % 4096 == 0
        assert len(json.loads(header[8:])) == n + 1


# --- what is refused ---------------------------------------------------------------------------------------

F16 = np.float16
Change = Callable[[Path], None]


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    tensors, config = {"w": EMBED, "n": NORM}, {"tie_word_embeddings": False, "num_key_value_heads": 4}
    return [write_folder(tmp_path / name, [tensors], config=config) for name in ("a", "b")]


def with_tensors(**tensors: Stored) -> Change:
    return lambda folder: write_safetensors(folder / "model.safetensors", tensors)


def with_json(name: str, **fields: Any) -> Change:
    def change(folder: Path) -> None:
        found = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(found | fields))

    return change


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 3)


def garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"PK\3\4" * 100)


def only_bin(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def index_without_file(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "model.safetensors"}}))


def index_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "../a/model.safetensors"}})
    )


def float8(folder: Path) -> None:
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)


def other_tokenizer_file(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")


EMBED, NORM = made_up(0)["embed"], made_up(0)["norm"]
REFUSED: list[tuple[Change, str]] = [
    (with_tensors(w=EMBED), r"b: has no tensor 'n', which .*a has"),
    (with_tensors(w=EMBED, n=NORM, lm_head=NORM), r"a: has no tensor 'lm_head', which .*b has"),
    (with_tensors(w=("F16", np.ones((2, 3), F16)), n=NORM), r"'w' has shape \[2, 3\], and in .*a \[90001\]"),
    (with_tensors(w=("BF16", EMBED[1].view(np.uint16)), n=NORM), r"'w' has type BF16, and in .*a F16"),
    (with_json("config.json", vocab_size=5), r"config\.json: vocab_size is 5, and in .*a 4"),
    (with_json("config.json", tie_word_embeddings=True), "tie_word_embeddings is True, and in .*a False"),
    (with_json("config.json", num_key_value_heads=2), "num_key_value_heads is 2, and in .*a 4"),
    (
        with_json(
            "tokenizer.json", model={"type": "BPE", "vocab": {"a": 0, "c": 1, "b": 2, "d": 3}, "merges": ["a b"]}
        ),
        r"b/tokenizer\.json: another tokenizer than that of .*a: token 'b' is 2 instead of 1",
    ),
    (with_json("tokenizer.json", added_tokens=[{"id": 4, "content": "<pad>"}]), "5 tokens instead of 4"),
    (with_json("tokenizer.json", normalizer={"type": "Lowercase"}), "normalizer differ"),
    (other_tokenizer_file, r"its tokenizer is in tokenizer\.model, that of .*a in tokenizer\.json"),
    (cut, r"model\.safetensors: has \d+ bytes where its header says \d+: it was cut short"),
    (garbage, "is no safetensors file, or was cut short"),
    (only_bin, r"holds no model\.safetensors, but pytorch_model\.bin: save the model as safetensors"),
    (adapter, "holds an adapter, .*merge it into its model first"),
    (index_without_file, r"index\.json: names 'x', which its file does not hold"),
    (index_elsewhere, "names files outside its folder"),
    (float8, r"'w' has type F8_E4M3, and what is averaged is F64, F32, F16, BF16"),
    (shutil.rmtree, "b: no such folder or file"),
]


@pytest.mark.parametrize(("change", "sentence"), REFUSED)
def test_models_that_do_not_fit_together_are_a_sentence(two: list[Path], change: Change, sentence: str) -> None:
    change(two[1])
    with pytest.raises(ConfigError, match=sentence):
        soup(two, two[0].with_name("out"))
    assert not two[0].with_name("out").exists()


def test_another_type_is_refused_with_the_command_that_changes_it(tmp_path: Path) -> None:
    for name, kind, dtype in (("a", "F16", np.float16), ("b", "F32", np.float32)):
        write_folder(tmp_path / name, [{"w": (kind, np.ones(3, dtype))}])
    models = [tmp_path / "a", tmp_path / "b"]
    told = (
        rf"'w' has type F32, and in .*a F16: write both in one type, with 'sandtable soup {models[1]} {models[1]} "
    )
    with pytest.raises(ConfigError, match=f"{told}-o NAME --dtype float16'"):
        soup(models, tmp_path / "out")
    soup([models[1]] * 2, tmp_path / "c", options=SoupOptions(dtype="float16"))
    soup([models[0], tmp_path / "c"], tmp_path / "out")


def test_tokenizers_are_the_same_however_they_are_written(two: list[Path], tmp_path: Path) -> None:
    with_json("tokenizer.json", padding={"length": 3}, truncation=None)(two[1])
    found = json.loads((two[1] / "tokenizer.json").read_text())
    found["model"]["merges"] = ["a b"]
    (two[1] / "tokenizer.json").write_text(json.dumps(found, indent=3))
    soup(two, tmp_path / "out")


def test_a_model_that_is_named_twice_has_both_weights(two: list[Path], tmp_path: Path) -> None:
    made = soup([two[0], two[1], two[0]], tmp_path / "out", [0.25, 0.5, 0.25])
    assert made.weights == {str(two[0]): 0.5, str(two[1]): 0.5}
    assert_same(all_of(tmp_path / "out"), all_of(two[0]))


def test_what_a_configuration_leaves_out_is_not_refused(two: list[Path], tmp_path: Path) -> None:
    found = json.loads((two[1] / "config.json").read_text())
    (two[1] / "config.json").write_text(json.dumps({key: found[key] for key in ("model_type", "vocab_size")}))
    said: list[str] = []
    soup(two, tmp_path / "out", options=SoupOptions(say=said.append))
    assert "differ in num_key_value_heads, tie_word_embeddings: the first one's is kept" in said[0]


def test_other_tokenizers_are_averaged_if_that_is_asked_for(two: list[Path], tmp_path: Path) -> None:
    with_json("tokenizer.json", added_tokens=[{"id": 4, "content": "<pad>"}])(two[1])
    soup(two, tmp_path / "out", options=SoupOptions(ignore_tokenizer=True))
    said: list[str] = []
    (two[1] / "tokenizer.json").unlink()
    soup(two, tmp_path / "out2", options=SoupOptions(say=said.append))
    assert "has a tokenizer: not compared" in said[0]


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ([0.1, 1.0], r"weights sum to 1\.1, not to one"),
        ([0.5, 0.5001], "not to one"),
        ([1.0], "1 weights for 2 checkpoints"),
        ([float("nan"), 1.0], "finite"),
    ],
)
def test_weights_that_give_no_average_are_refused(two: list[Path], weights: list[float], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        soup(two, two[0].with_name("out"), weights)


def test_weights_are_normalised_on_demand(two: list[Path], tmp_path: Path) -> None:
    made = soup(two, tmp_path / "out", [1, 3], normalize=True)
    assert list(made.weights.values()) == [0.25, 0.75]
    with pytest.raises(ConfigError, match="sum to zero"):
        soup(two, tmp_path / "out2", [1, -1], normalize=True)


def test_the_output_is_none_of_the_models_and_nothing_that_is_there(two: list[Path], tmp_path: Path) -> None:
    for output, sentence in (
        (two[1], "is one of the checkpoints"),
        (tmp_path, "exists already"),
        (tmp_path / "none" / "out", "its folder does not exist"),
        (tmp_path / "out.safetensors", "the soup of folders is a folder"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            soup(two, output)
    files = [folder / "model.safetensors" for folder in two]
    with pytest.raises(ConfigError, match="the soup of files is a file"):
        soup(files, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"is a file and .*a a folder"):
        soup([two[0], files[1]], tmp_path / "out")


def test_values_that_are_not_finite_are_named(two: list[Path], tmp_path: Path) -> None:
    values = EMBED[1].copy()
    values[[5, 70_000]] = np.nan, np.inf
    with_tensors(w=("F16", values), n=NORM)(two[1])
    with pytest.raises(
        ConfigError, match=r"b/model\.safetensors: 'w' holds values that are infinite or no numbers"
    ):
        soup(two, tmp_path / "out", options=SMALL)
    said: list[str] = []
    made = soup(
        two, tmp_path / "out", options=SoupOptions(memory_bytes=1.5e6, allow_nonfinite=True, say=said.append)
    )
    assert made.notes == (
        f"{two[1]}/model.safetensors: 'w' holds values that are infinite or no numbers (2 values)",
    )
    found = all_of(tmp_path / "out")["w"][1]
    assert list(np.flatnonzero(~np.isfinite(found))) == [5, 70_000]


def test_a_sum_beyond_the_type_is_named(tmp_path: Path) -> None:
    for name, value in (("a", 6e4), ("b", -6e4)):
        write_safetensors(tmp_path / f"{name}.safetensors", {"w": ("F16", np.full(9, value, F16))})
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    with pytest.raises(ConfigError, match="'w' of the soup is beyond what F16 can hold: write it in a wider type"):
        soup(files, tmp_path / "out.safetensors", [2, -1])
    soup(files, tmp_path / "out.safetensors", [2, -1], options=SoupOptions(dtype="float32"))
    assert read_safetensors(tmp_path / "out.safetensors")["w"][1][0] == 2 * F16(6e4).astype(float) + 6e4


def test_whole_numbers_that_differ_are_named(tmp_path: Path) -> None:
    for place in range(2):
        write_safetensors(tmp_path / f"{place}.safetensors", {"n": ("I64", np.arange(9) * (1 + place))})
    with pytest.raises(ConfigError, match=r"1\.safetensors: 'n' holds whole numbers, and not those of .*0\.safe"):
        soup([tmp_path / "0.safetensors", tmp_path / "1.safetensors"], tmp_path / "out.safetensors")


# --- the disk ----------------------------------------------------------------------------------------------


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_disk_without_room_is_refused_before_anything_is_written(two: list[Path], tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    with mock.patch("shutil.disk_usage", return_value=usage), pytest.raises(DoesNotFit, match="100 B are free"):
        soup(two, tmp_path / "out")
    assert left(tmp_path) == ["a", "b"]


def test_a_disk_that_becomes_full_leaves_nothing_behind(two: list[Path], tmp_path: Path) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with mock.patch("os.pwrite", full), pytest.raises(DoesNotFit, match="out"):
        soup(two, tmp_path / "out")
    assert left(tmp_path) == ["a", "b"]


def test_a_disk_that_is_full_when_the_weights_are_written_leaves_nothing_either(
    two: list[Path], tmp_path: Path
) -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with mock.patch("shutil.copyfile", side_effect=error), pytest.raises(DoesNotFit, match="are free"):
        soup(two, tmp_path / "out")
    assert left(tmp_path) == ["a", "b"]


def test_a_folder_that_cannot_be_written_is_a_sentence(two: list[Path], tmp_path: Path) -> None:
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with mock.patch("pathlib.Path.mkdir", side_effect=error), pytest.raises(ConfigError, match="cannot be written"):
        soup(two, tmp_path / "out")


def test_whatever_breaks_a_pass_leaves_nothing_behind(two: list[Path], tmp_path: Path) -> None:
    def interrupted(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        soup(two, tmp_path / "out", options=SoupOptions(progress=interrupted))
    assert left(tmp_path) == ["a", "b"]


KILLED = """
import sys, time
from sandtable_workloads.rlhf.soups import SoupOptions, soup
def hang(done, total):
    print(done, flush=True)
    time.sleep(60)
soup(sys.argv[1:3], sys.argv[3], options=SoupOptions(memory_bytes=1.2e6, progress=hang))
"""


def test_a_killed_pass_leaves_no_soup_and_the_next_one_sweeps(two: list[Path], tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, *map(str, two), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    (part,) = (name for name in left(tmp_path) if name not in ("a", "b"))
    assert part.startswith("sandtable-output-")
    soup(two, tmp_path / "out")
    assert left(tmp_path) == ["a", "b", "out"]


# --- greedy ------------------------------------------------------------------------------------------------


def scalars(tmp_path: Path, *values: float) -> list[Path]:
    return [
        write_folder(tmp_path / f"m{place}", [{"w": ("F32", np.full(3, value, np.float32))}])
        for place, value in enumerate(values)
    ]


def nearness(path: Path) -> float:
    """The best model has weights of one."""
    return -abs(float(all_of(path)["w"][1][0]) - 1)


def test_a_greedy_soup_keeps_what_does_not_lower_the_score(tmp_path: Path) -> None:
    models = scalars(tmp_path, 4.0, 0.5, 1.5, 1.2)
    said: list[str] = []
    made = greedy_soup(models, tmp_path / "out", nearness, options=SoupOptions(say=said.append))
    # 1.2 alone; (1.2 + 0.5) / 2 = 0.85 is nearer; (1.2 + 0.5 + 1.5) / 3 = 1.0667 is nearer yet; 4 is not
    assert list(made.weights) == [str(models[place]) for place in (3, 1, 2)]
    assert made.score == pytest.approx(-1 / 15, abs=1e-6)
    assert all_of(tmp_path / "out")["w"][1] == pytest.approx(3.2 / 3)
    assert made.scores == {str(model): nearness(model) for model in models}
    record = json.loads((tmp_path / "out" / "soup.json").read_text())
    assert list(record["weights"]) == list(made.weights)
    assert record["score"] == made.score
    assert left(tmp_path) == ["m0", "m1", "m2", "m3", "out"]
    assert [line.split(", ")[-1] for line in said[1:]] == ["stays", "stays", "left out"]


def test_equal_scores_let_a_model_stay(tmp_path: Path) -> None:
    made = greedy_soup(scalars(tmp_path, 1.0, 3.0), tmp_path / "out", lambda _: 0.0)
    assert len(made.weights) == 2


def test_one_model_that_none_improves_is_the_soup_itself(tmp_path: Path) -> None:
    models = scalars(tmp_path, 9.0, 1.0)
    made = greedy_soup(models, tmp_path / "out", nearness)
    assert list(made.weights) == [str(models[1])]
    assert all_of(tmp_path / "out")["w"][1] == pytest.approx(1)


def test_a_score_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its score is nan"):
        greedy_soup(scalars(tmp_path, 9.0, 1.0), tmp_path / "out", lambda _: float("nan"))
    assert left(tmp_path) == ["m0", "m1"]


# --- where files are read from -----------------------------------------------------------------------------


def test_whether_the_page_cache_is_used_does_not_change_the_soup(tmp_path: Path) -> None:
    models = [made_up(seed, n_large=3_000_001) for seed in range(2)]
    for place, model in enumerate(models):
        write_folder(tmp_path / f"m{place}", [model])
    for cached in (True, False):
        with mock.patch.object(soup_pass, "_is_cached", lambda _handle, found=cached: found):
            soup([tmp_path / "m0", tmp_path / "m1"], tmp_path / f"out{cached}")
        assert_same(all_of(tmp_path / f"out{cached}"), expected(models, [0.5, 0.5]))
