"""Files that are whole or not there, leftovers of the dead, locks, checksums, limits."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandtable.errors import ConfigError, InUse
from sandtable.system import atomic_files, checksums, limits, locks

HOLDER = """
import sys, time
from pathlib import Path
from sandtable.system import atomic_files, locks
folder = Path(sys.argv[1])
with locks.claimed(folder / "thing", "holds it"):
    part, _ = atomic_files.create_part(folder / "large.bin")
    with atomic_files.temporary_folder(folder, "cold") as own:
        (own / "data").write_text("much")
        print(part.name, own.name, flush=True)
        time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    """A process that holds a lock, a part of a file and a temporary folder."""
    return subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)


def test_what_a_running_process_holds_stays_and_what_a_killed_one_left_goes(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    with holder:
        assert holder.stdout is not None
        names = holder.stdout.readline().split()
        atomic_files.sweep(tmp_path)
        assert {*names, "thing.lock"} <= {path.name for path in tmp_path.iterdir()}
        with (
            pytest.raises(InUse, match=rf"thing: process {holder.pid} \(since 20.*\) holds it"),
            locks.claimed(tmp_path / "thing", "holds it"),
        ):
            pytest.fail("two hold it")
        holder.kill()
    atomic_files.sweep(tmp_path)
    with locks.claimed(tmp_path / "thing", "holds it"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_are_never_swept(tmp_path: Path) -> None:
    names = ("model.partial", "notes.0123456.partial", "sandtable-checkout", "sandtable-cold", "x.partial.bak")
    for name in names:
        (tmp_path / name).write_text("mine")
    atomic_files.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def test_a_writer_removes_parts_of_the_same_file_that_the_dead_left(tmp_path: Path) -> None:
    (tmp_path / "a[1].json.0badcafe.partial").write_text("half")
    (tmp_path / "other.json.0badcafe.partial").write_text("half")
    atomic_files.write_atomically(tmp_path / "a[1].json", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a[1].json", "other.json.0badcafe.partial"]


def test_files_have_the_mode_that_the_user_wants(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_files.write_atomically(tmp_path / "new", "text")
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640
        (tmp_path / "new").chmod(0o604)
        atomic_files.write_atomically(tmp_path / "new", "text again")
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o604
    finally:
        os.umask(before)


def test_links_stay_links_and_devices_stay_devices(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    atomic_files.write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    atomic_files.write_atomically(Path(os.devnull), "nothing")
    assert Path(os.devnull).is_char_device()


def test_a_lock_that_a_child_of_a_dead_holder_keeps_is_waited_for(tmp_path: Path) -> None:
    script = """
import subprocess, sys
from pathlib import Path
from sandtable.system import locks
with locks.claimed(Path(sys.argv[1]), "works") as handle:
    subprocess.Popen(["sleep", "0.5"], pass_fds=[handle])
    print("started", flush=True)
    import os
    os._exit(9)
"""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "job")], check=False, stdout=subprocess.PIPE)
    with locks.claimed(tmp_path / "job", "works"):
        assert time.monotonic() - began > 0.4


class TestChecksums:
    def test_json_and_yaml_come_back_as_they_were(self) -> None:
        text = '{\n "a": 1\n}'
        sealed = checksums.sealed_json(text)
        assert checksums.checked_json(sealed.encode(), "x") == text.encode()
        assert checksums.checked_json(text.encode(), "x") == text.encode()
        checksums.check_yaml(checksums.sealed_yaml("a: 1\n"), "x")
        checksums.check_yaml("# 0123456789abcdef0123\na: 1\n", "x")

    @pytest.mark.parametrize("kind", ["json", "yaml"])
    def test_every_flipped_bit_and_every_cut_is_noticed_or_changes_nothing(self, kind: str) -> None:
        body = "\n".join(f' "k{i}": {i}.5,' for i in range(12))
        text = f'{{\n{body}\n "z": 0\n}}' if kind == "json" else body
        sealed = (checksums.sealed_json if kind == "json" else checksums.sealed_yaml)(text).encode()
        damaged = [bytearray(sealed) for _ in range(8 * len(sealed))]
        for bit, data in enumerate(damaged):
            data[bit // 8] ^= 1 << bit % 8
        cuts = [sealed[:length] for length in range(1, len(sealed))]
        for data in (*map(bytes, damaged), *cuts):
            assert not self.passes(data, text, kind)

    def passes(self, data: bytes, text: str, kind: str) -> bool:
        """Whether other content than ``text`` would be read without a word."""
        if kind == "json":
            import json

            try:
                found = checksums.checked_json(data, "x")
                return "digest" not in (read := json.loads(found)) and set(read) == set(json.loads(text))
            except ValueError:
                return False
            except ConfigError:
                return False
        try:
            shown = data.decode()
            checksums.check_yaml(shown, "x")
        except (UnicodeDecodeError, ConfigError):
            return False
        # a comment alone is no mapping, and refused as such
        return "\n" in shown and shown.partition("\n")[2] != text


class TestMemoryLimits:
    def tree(self, root: Path, groups: str, limits_: dict[str, str]) -> Path:
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(groups)
        for name, text in limits_.items():
            file = root / "sys/fs/cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")
        return root

    def test_nested_groups_of_version_2(self, tmp_path: Path) -> None:
        given = {"a/memory.max": str(3 << 30), "a/b/memory.max": "max", "a/b/c/memory.max": str(4 << 30)}
        root = self.tree(tmp_path, "0::/a/b/c\n", given)
        assert sorted(limits.group_limits(root)) == [3 << 30, 4 << 30]

    def test_version_1_with_and_without_a_limit(self, tmp_path: Path) -> None:
        given = {
            "memory/docker/x/memory.limit_in_bytes": str(1 << 30),
            "memory/memory.limit_in_bytes": "9223372036854771712",
        }
        root = self.tree(tmp_path, "5:cpu,memory:/docker/x\n4:freezer:/docker/x\n", given)
        assert limits.group_limits(root) == [1 << 30]
        assert limits.memory_bytes(root) <= 1 << 30

    def test_inside_a_container_the_mount_itself_is_the_group(self, tmp_path: Path) -> None:
        root = self.tree(tmp_path, "7:memory:/docker/x\n", {"memory/memory.limit_in_bytes": str(2 << 30)})
        assert limits.group_limits(root) == [2 << 30]

    def test_without_groups_the_machine_counts(self, tmp_path: Path) -> None:
        assert limits.group_limits(tmp_path) == []
        pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert 0 < limits.memory_bytes(tmp_path) <= pages

    def test_a_limit_of_address_space_counts(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 30, 1 << 30))
        assert limits.memory_bytes(tmp_path) == 1 << 30
        assert limits.out_of_memory("12 bytes").startswith("out of memory (12 bytes): this process may use ")

    def test_the_last_cache_is_the_largest(self, tmp_path: Path) -> None:
        for index, size in enumerate(("48K", "2M", "odd")):
            folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}"
            folder.mkdir(parents=True)
            (folder / "size").write_text(f"{size}\n")
        assert limits.last_level_cache_bytes(tmp_path) == 2 << 20
        assert limits.last_level_cache_bytes(tmp_path / "elsewhere") is None


def test_random_damage_of_sealed_yaml_is_never_read(tmp_path: Path) -> None:
    rng = random.Random(1)
    sealed = checksums.sealed_yaml("".join(f"key{i}: {i * 1.7}\n" for i in range(200))).encode()
    for _ in range(500):
        data = bytearray(sealed)
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            text = bytes(data).decode()
            checksums.check_yaml(text, "x")
        except (UnicodeDecodeError, ConfigError):
            continue
        assert text.partition("\n")[2].encode() == sealed.partition(b"\n")[2]
