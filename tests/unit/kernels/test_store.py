"""Stores on disk: the right bytes, and a clear sentence for each way in which a file can be wrong."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sandtable_kernels
from sandtable.errors import ConfigError, DoesNotFit, MeasureError, StoreError, UnknownName
from sandtable_kernels.files import buffers, container, dtypes, weights
from sandtable_kernels.files.store import Blob, NeuronStore, StoreGeometry, create_blob, create_store, element_index

GEOMETRY = StoreGeometry(n_layers=3, n_neurons=20, d_model=512, dtype="float16")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return create_store(tmp_path / "weights.store", GEOMETRY, seed=7).path


def flip_bit(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


# --- weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", dtypes.DTYPES)
@pytest.mark.parametrize("first", [0, 1, 12345, 2**32 - 1000, 5 * 2**32 - 3])
def test_compiled_weights_equal_the_reference_bit_for_bit(dtype: str, first: int) -> None:
    pytest.importorskip("numba", reason="the fast path needs numba")
    out = np.empty(5000, dtypes.storage_dtype(dtype))
    weights.fill(out, dtype, 42, first, 0.02)
    assert np.array_equal(out, weights.reference(5000, dtype, 42, first, 0.02))


@pytest.mark.parametrize("dtype", dtypes.DTYPES)
@pytest.mark.parametrize("numba", [True, False])
def test_rows_with_a_stride(dtype: str, numba: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not numba:
        monkeypatch.delattr(sandtable_kernels, "weight_bits", raising=False)
        monkeypatch.setitem(sys.modules, "sandtable_kernels.compiled.weight_bits", None)
    wide = np.zeros((4, 100), dtypes.storage_dtype(dtype))
    weights.fill(wide[:, :60], dtype, -3, 2**32 - 150, 1.0, row_stride=90)
    for row in range(4):
        expected = weights.reference(60, dtype, -3, 2**32 - 150 + 90 * row, 1.0)
        assert np.array_equal(wide[row, :60], expected)
    assert not wide[:, 60:].any()


@pytest.mark.parametrize("shape", [(1 << 20,), (1024, 1024), (3, 400_000)])
def test_threads_do_not_change_the_result(shape: tuple[int, ...]) -> None:
    one, many = np.empty(shape, np.float32), np.empty(shape, np.float32)
    weights.fill(one, "float32", 1, 99, 1.0, n_threads=1)
    weights.fill(many, "float32", 1, 99, 1.0, n_threads=5)
    assert np.array_equal(one, many)


def test_weights_are_spread_evenly_and_unrelated_between_seeds() -> None:
    a = weights.reference(200_000, "float32", 1, 0, 2.0)
    b = weights.reference(200_000, "float32", 2, 0, 2.0)
    assert -2 <= a.min() < -1.999
    assert 1.999 < a.max() < 2
    assert abs(a.mean()) < 0.02
    assert a.std() == pytest.approx(2 / 3**0.5, rel=0.01)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.01
    assert abs(np.corrcoef(a[:-1], a[1:])[0, 1]) < 0.01
    assert len(np.intersect1d(a, b)) < 0.02 * len(a)  # not the same values in another order


def test_weights_refuse_what_they_cannot_fill() -> None:
    with pytest.raises(ConfigError, match="bfloat16 weights fill"):
        weights.fill(np.empty(3, np.float32), "bfloat16", 0, 0, 1.0)
    with pytest.raises(ConfigError, match="contiguous"):
        weights.fill(np.empty((4, 4), np.float32).T[:, :2], "float32", 0, 0, 1.0)
    with pytest.raises(ConfigError, match="at least 0"):
        weights.fill(np.empty(3, np.float32), "float32", 0, -1, 1.0)


# --- geometry ----------------------------------------------------------------------------------------------

geometries = st.builds(
    StoreGeometry,
    n_layers=st.integers(1, 4),
    n_neurons=st.integers(1, 40),
    d_model=st.integers(1, 3000),
    n_vectors=st.sampled_from([2, 3]),
    dtype=st.sampled_from(dtypes.DTYPES),
    layout=st.sampled_from(["bundled", "unbundled"]),
    alignment=st.sampled_from([512, 4096, 16384]),
)


@given(geometry=geometries)
def test_records_are_disjoint_aligned_and_cover_the_data(geometry: StoreGeometry) -> None:
    vectors: list[int | None] = [None] if geometry.layout == "bundled" else list(range(geometry.n_vectors))
    neurons = np.arange(geometry.n_neurons)
    starts = np.concatenate(
        [geometry.record_offsets(layer, neurons, v) for layer in range(geometry.n_layers) for v in vectors]
    )
    assert len(vectors) == geometry.n_records_per_neuron
    assert np.array_equal(np.sort(starts), np.arange(len(starts)) * geometry.record_bytes)
    assert geometry.total_bytes == len(starts) * geometry.record_bytes
    assert geometry.record_bytes % geometry.alignment == 0
    held = geometry.n_vectors * geometry.vector_bytes
    assert held <= geometry.record_bytes * geometry.n_records_per_neuron
    assert geometry.record_bytes - geometry.record_items * dtypes.itemsize(geometry.dtype) < geometry.alignment


def test_the_published_geometry() -> None:
    # OPT-6.7B in "LLM in a flash": 32 layers of 16384 neurons, 16 KiB per bundle in fp16
    opt = StoreGeometry(n_layers=32, n_neurons=16384, d_model=4096)
    assert (opt.vector_bytes, opt.record_bytes, opt.total_bytes) == (8192, 16384, 8 << 30)
    apart = dataclasses.replace(opt, layout="unbundled")
    assert (apart.record_bytes, apart.n_records_per_neuron, apart.total_bytes) == (8192, 2, 8 << 30)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_layers": 0}, "n_layers of at least 1"),
        ({"n_vectors": 4}, "2 vectors"),
        ({"layout": "columns"}, "'bundled' or 'unbundled'"),
        ({"alignment": 1000}, "power of two"),
    ],
)
def test_impossible_geometries(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(GEOMETRY, **change)
    with pytest.raises(UnknownName):
        dataclasses.replace(GEOMETRY, dtype="int8")


def test_indices_are_checked() -> None:
    apart = dataclasses.replace(GEOMETRY, layout="unbundled")
    for shape, arguments in [
        (GEOMETRY, (3, [0], None)),
        (GEOMETRY, (-1, [0], None)),
        (GEOMETRY, (0, [20], None)),
        (GEOMETRY, (0, [-1], None)),
        (GEOMETRY, (0, [0], 1)),
        (apart, (0, [0], None)),
        (apart, (0, [0], 2)),
    ]:
        with pytest.raises(ConfigError):
            shape.record_offsets(*arguments)


# --- contents ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(geometry=geometries, seed=st.integers(-(2**70), 2**70))
def test_any_neuron_can_be_recomputed_without_the_file(geometry: StoreGeometry, seed: int, tmp_path: Path) -> None:
    store = create_store(tmp_path / "any.store", geometry, seed=seed, replace=True)
    neurons = np.random.default_rng(0).integers(0, geometry.n_neurons, 5)
    for layer in range(geometry.n_layers):
        found = store.read_neurons_reference(layer, neurons)
        assert found.shape == (5, geometry.n_vectors, geometry.d_model)
        assert np.array_equal(found, store.expected_neurons(layer, neurons))
    first = weights.reference(
        geometry.d_model, geometry.dtype, seed, element_index(geometry, 0, int(neurons[0]), 1), store.scale
    )
    assert np.array_equal(store.read_neurons_reference(0, neurons)[0, 1], dtypes.decode(first, geometry.dtype))


def test_both_layouts_hold_the_same_weights(tmp_path: Path) -> None:
    shape = dataclasses.replace(GEOMETRY, n_vectors=3, dtype="bfloat16")
    one = create_store(tmp_path / "a", shape, seed=1)
    other = create_store(tmp_path / "b", dataclasses.replace(shape, layout="unbundled"), seed=1)
    neurons = [0, 19, 7]
    assert np.array_equal(one.read_neurons_reference(2, neurons), other.read_neurons_reference(2, neurons))


@pytest.mark.filterwarnings("ignore::sandtable_kernels.files.reader.DirectIOUnavailable")
def test_the_reader_brings_records_to_their_rows(path: Path) -> None:
    store = NeuronStore.open(path, expect=GEOMETRY)
    neurons = np.array([3, 17, 4])
    rows = buffers.aligned_empty((3, GEOMETRY.record_bytes), np.uint8)
    with store.reader(concurrency=2) as reader:
        addresses = buffers.address(rows) + np.arange(3) * GEOMETRY.record_bytes
        reader.read_batch(store.offsets(1, neurons), GEOMETRY.record_bytes, addresses)
    held = rows.view(np.uint16)[:, : GEOMETRY.record_items].reshape(3, 2, 512)
    assert np.array_equal(dtypes.decode(held, "float16"), store.expected_neurons(1, neurons))
    assert not rows.view(np.uint16)[:, GEOMETRY.record_items :].any()


def test_layers_lie_one_behind_the_other(path: Path) -> None:
    store = NeuronStore.open(path)
    spans = [store.layer_span(layer) for layer in range(3)]
    assert spans[0][0] == store.data_offset
    assert all(start % GEOMETRY.alignment == 0 for start, _ in spans)
    assert all(a[0] + a[1] == b[0] for a, b in itertools.pairwise(spans))
    assert sum(spans[-1]) == store.n_bytes == path.stat().st_size
    with pytest.raises(ConfigError, match="layers 0 to 2"):
        store.layer_span(3)


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    create_store(tmp_path / "s", GEOMETRY, seed=0, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (GEOMETRY.total_bytes, GEOMETRY.total_bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_large_alignment_moves_the_data(tmp_path: Path) -> None:
    shape = dataclasses.replace(GEOMETRY, alignment=65536)
    assert create_store(tmp_path / "s", shape, seed=0).data_offset == 65536


# --- files that are wrong ----------------------------------------------------------------------------------


def check_refused(path: Path, words: str, **options: Any) -> None:
    with pytest.raises(StoreError, match=words) as caught:
        NeuronStore.open(path, **options)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message


def test_not_a_store(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for text in (b"", b"abc", b"x" * 9000):
        path.write_bytes(text)
        check_refused(path, "not a file of weights")
    with pytest.raises(ConfigError, match="No such file"):
        NeuronStore.open(tmp_path / "none")


def test_another_version(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(8)
        file.write(struct.pack("<I", 99))
    check_refused(path, "format version 99, this program reads 1")


@pytest.mark.parametrize("keep", [10, 100, 4095, 4096, -4096, -1])
def test_truncated(path: Path, keep: int) -> None:
    os.truncate(path, keep if keep > 0 else path.stat().st_size + keep)
    check_refused(path, "truncated")


def test_appended_to(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")
    check_refused(path, "appended to")


@pytest.mark.parametrize("at", [12, 13, 16, 19, 20, 24, 60, 200, 2000, 4095])
def test_one_flipped_bit_in_the_header(path: Path, at: int) -> None:
    flip_bit(path, at)
    check_refused(path, "header was altered|truncated")


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("where", ["first", "last"])
def test_one_flipped_bit_in_a_layer(path: Path, layer: int, where: str) -> None:
    start, n_bytes = NeuronStore.open(path).layer_span(layer)
    flip_bit(path, start if where == "first" else start + n_bytes - 1)
    for _ in range(2):  # a failed check must not be remembered as passed
        check_refused(path, f"layer {layer} was altered")
    check_refused(path, f"layer {layer} was altered", verify="always")
    NeuronStore.open(path, verify="never")


@pytest.mark.parametrize(
    ("name", "value"), [("d_model", 1024), ("n_layers", 4), ("dtype", "bfloat16"), ("layout", "unbundled")]
)
def test_another_geometry_says_which_field(path: Path, name: str, value: Any) -> None:
    asked = dataclasses.replace(GEOMETRY, **{name: value})
    check_refused(path, f"has {name} {getattr(GEOMETRY, name)}, {value} was asked", expect=asked)


def test_another_generator(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "GENERATOR", "another/2")
    check_refused(path, "create it again")


def test_bad_verify(path: Path) -> None:
    with pytest.raises(ConfigError, match="'auto', 'always' or 'never'"):
        NeuronStore.open(path, verify="maybe")  # type: ignore[arg-type]


def test_a_stamp_saves_the_second_check(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    real = container._checksum
    monkeypatch.setattr(container, "_checksum", lambda *a: checked.append(1) or real(*a))
    NeuronStore.open(path)
    assert not checked  # created here
    os.utime(path)
    NeuronStore.open(path)
    assert len(checked) == 3
    NeuronStore.open(path)
    assert len(checked) == 3
    container._stamp_path(path).write_text("{", encoding="utf-8")
    NeuronStore.open(path)
    assert len(checked) == 6
    NeuronStore.open(path, verify="always")
    assert len(checked) == 9


# --- creating that fails -----------------------------------------------------------------------------------


def check_nothing_left(folder: Path) -> None:
    assert not list(folder.iterdir())


def test_no_room_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1 << 20})())
    monkeypatch.setattr(container, "LargeFile", None)
    with pytest.raises(DoesNotFit, match=r"needs .* of disk and 1 MiB are free: delete something"):
        create_store(tmp_path / "s", GEOMETRY, seed=0)
    check_nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("code", "expected"), [(errno.ENOSPC, DoesNotFit), (errno.EDQUOT, DoesNotFit), (errno.EIO, MeasureError)]
)
@pytest.mark.parametrize("good_writes", [0, 1, 3])
def test_a_write_that_fails_midway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, expected: type[Exception], good_writes: int
) -> None:
    real, calls = os.pwrite, itertools.count()

    def failing(*arguments: Any) -> int:
        if next(calls) >= good_writes:
            raise OSError(code, os.strerror(code))
        return real(*arguments)

    monkeypatch.setattr(container.os, "pwrite", failing)
    with pytest.raises(expected, match=str(tmp_path / "s")):
        create_store(tmp_path / "s", GEOMETRY, seed=0)
    check_nothing_left(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_create_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise error

    with pytest.raises(error):
        create_store(tmp_path / "s", GEOMETRY, seed=0, progress=stop)
    check_nothing_left(tmp_path)


def test_a_failed_replacement_keeps_the_old_store(path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_store(path, GEOMETRY, seed=8, replace=True, progress=stop)
    assert NeuronStore.open(path).seed == 7
    assert create_store(path, GEOMETRY, seed=8, replace=True).seed == 8
    assert NeuronStore.open(path, verify="always").seed == 8


def test_other_files_are_not_replaced(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        create_store(path, GEOMETRY, seed=0)
    notes = tmp_path / "notes.txt"
    notes.write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="not a file of weights, and is not replaced"):
        create_store(notes, GEOMETRY, seed=0, replace=True)
    assert notes.read_text(encoding="utf-8") == "mine"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        create_store(tmp_path / "none" / "s", GEOMETRY, seed=0)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="no O_DIRECT on this system")
@pytest.mark.parametrize("when", ["open", "write"])
def test_a_file_system_without_direct_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    import fcntl

    real_open, real_pwrite = os.open, os.pwrite

    def no_open(where: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(where, flags, *rest)

    def no_write(fd: int, *rest: Any) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_pwrite(fd, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(container.os, *(("open", no_open) if when == "open" else ("pwrite", no_write)))
        store = create_store(tmp_path / "s", GEOMETRY, seed=3)
    assert np.array_equal(store.read_neurons_reference(1, [5]), store.expected_neurons(1, [5]))
    NeuronStore.open(store.path, verify="always")


# --- flat files --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::sandtable_kernels.files.reader.DirectIOUnavailable")
@pytest.mark.parametrize("n_bytes", [4, 4096, 10_000, (70 << 20) + 8])
def test_a_flat_file(tmp_path: Path, n_bytes: int) -> None:
    blob = create_blob(tmp_path / "b", n_bytes, seed=5, dtype="bfloat16")
    assert Blob.open(tmp_path / "b", n_bytes, verify="always") == blob
    out = buffers.aligned_empty((blob.padded_bytes,), np.uint8)
    with blob.reader(concurrency=4) as reader:
        reader.read_sequential(blob.data_offset, len(out), buffers.address(out), chunk_bytes=1 << 20)
    held = out[:n_bytes].view(np.uint16)
    tail = min(len(held), 5000)
    assert np.array_equal(held[-tail:], weights.reference(tail, "bfloat16", 5, len(held) - tail, blob.scale))


def test_a_flat_file_of_another_size_or_kind(path: Path, tmp_path: Path) -> None:
    create_blob(tmp_path / "b", 8192, seed=0)
    with pytest.raises(StoreError, match="has 8192 bytes of weights, 4096 were asked"):
        Blob.open(tmp_path / "b", 4096)
    with pytest.raises(StoreError, match="holds 'neurons' where 'blob' is needed"):
        Blob.open(path)
    check_refused(tmp_path / "b", "holds 'blob' where 'neurons' is needed")
    flip_bit(tmp_path / "b", 5000)
    with pytest.raises(StoreError, match="block 0 was altered"):
        Blob.open(tmp_path / "b")
    with pytest.raises(ConfigError, match="whole float16 elements"):
        create_blob(tmp_path / "c", 7, seed=0)
