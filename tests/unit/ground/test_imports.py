"""The structure of the repository: imports run one way, heavy libraries wait, and files stay short."""

from __future__ import annotations

import ast
import re
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[3]
CORE = ROOT / "simulator" / "sandtable"
HEAVY = {"torch", "numba", "scipy", "pandas", "matplotlib", "perfetto", "jinja2", "ray"}
MOST_LINES = 600

# Lowest first: a package imports from rows above its own, never from its own row's others or from below.
GROUND = ("units", "errors", "system", "table", "plugins", "text_files", "yaml_files", "results")
LAYERS: tuple[tuple[str, ...], ...] = (
    *((name,) for name in GROUND),
    ("hardware",),
    ("demand",),
    ("model",),
    ("engine",),
    ("workload",),
    ("runs",),
    ("calibration", "studies"),
    ("published",),
    ("report",),
    ("api",),
    ("cli",),
    ("contracts", "__main__"),
)
LAYER_OF = {name: index for index, names in enumerate(LAYERS) for name in names}


class Import(NamedTuple):
    """One import statement: the module, and whether it runs when the file is imported."""

    module: str
    at_top: bool
    line: int


@lru_cache(maxsize=256)
def imports_of(path: Path) -> tuple[Import, ...]:
    return tuple(_imports(ast.parse(path.read_text()), at_top=True))


def _imports(node: ast.AST, *, at_top: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, at_top, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "relative import"
            # `from sandtable import units` imports sandtable.units, and only looking tells it from a class
            yield Import(str(child.module), at_top, child.lineno)
            yield from (Import(f"{child.module}.{alias.name}", at_top, child.lineno) for alias in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, at_top=at_top and not inside)


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    """Return the layer's name: ``units`` for simulator/sandtable/units.py, ``model`` for a file in model/."""
    return path.relative_to(CORE).parts[0].removesuffix(".py")


CORE_FILES = [path for path in python_files("simulator") if path != CORE / "__init__.py"]
core_files = pytest.mark.parametrize("path", CORE_FILES, ids=lambda path: str(path.relative_to(CORE)))


@core_files
def test_imports_run_one_way(path: Path) -> None:
    own = module_of(path)
    assert own in LAYER_OF, f"{own} has no place among the layers: give it one in this test"
    for item in imports_of(path):
        if not item.module.startswith("sandtable."):
            continue
        other = item.module.split(".")[1]
        if other in ("__version__", own):
            continue
        assert other in LAYER_OF, f"{path.name}:{item.line} imports {other}, which has no place among the layers"
        assert LAYER_OF[other] < LAYER_OF[own], (
            f"{path.name}:{item.line}: {own} imports {other}, which stands above it"
        )


def test_demands_know_no_machine_and_no_model() -> None:
    for path in python_files("simulator/sandtable/demand"):
        known = {item.module.split(".")[1] for item in imports_of(path) if item.module.startswith("sandtable.")}
        assert known <= {*GROUND, "demand"}, path.name


def test_the_model_has_no_clock() -> None:
    files = python_files("simulator/sandtable/model")
    assert len(files) > 3
    for path in files:
        assert not {item.module.split(".")[0] for item in imports_of(path)} & {"simpy", "time"}, path.name


@core_files
def test_the_core_names_no_kernel_and_no_workload(path: Path) -> None:
    packages = {item.module.split(".")[0] for item in imports_of(path)}
    assert not packages & {"sandtable_kernels", "sandtable_workloads"}
    assert not re.search(r"import_module\(.*sandtable_(kernels|workloads)", path.read_text())


@core_files
def test_heavy_libraries_wait_until_they_are_used(path: Path) -> None:
    at_top = {item.module.split(".")[0] for item in imports_of(path) if item.at_top}
    assert not at_top & HEAVY


def test_kernels_know_demands_and_nothing_above() -> None:
    for path in python_files("kernels"):
        for item in imports_of(path):
            package, _, rest = item.module.partition(".")
            assert package not in ("sandtable_workloads", "simpy"), f"{path.name}:{item.line}"
            if package == "sandtable" and rest:
                known = ("units", "errors", "system", "text_files", "yaml_files", "hardware", "demand", "results")
                assert rest.split(".")[0] in known, f"{path.name}:{item.line} imports {rest}"


def test_workloads_do_not_reach_into_commands() -> None:
    files = python_files("workloads")
    assert files
    for path in files:
        # adapters lie beside the workload that they score, and only their own command loads them
        scores = "published" in path.parts
        refused = {"cli", "report", "contracts"} | (set() if scores else {"calibration", "published"})
        # a workload's own commands are imported when one of them runs
        refused -= {"cli", "report"} if path.stem.endswith("_commands") else set()
        for item in imports_of(path):
            assert scores or ".published" not in item.module, path.name
            package, _, rest = item.module.partition(".")
            if package == "sandtable":
                assert rest.split(".")[0] not in refused


# --- what an import costs ----------------------------------------------------------------------------------


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("module", ["sandtable.cli.app", "sandtable.runs.predict", "sandtable.contracts"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    done = python(
        f"import sys, {module}; print(*sorted({HEAVY!r} & {{name.split('.')[0] for name in sys.modules}}))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def processor_s() -> float:
    """Return what the processes that ended took of a processor: a busy machine does not stretch that."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_answers_at_once() -> None:
    program = Path(sys.executable).with_name("sandtable")
    assert program.exists()
    seconds = []
    for _ in range(3):
        start = processor_s()
        done = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=30, check=False)
        seconds.append(processor_s() - start)
        assert done.returncode == 0
    for command in (
        "list",
        "simulate",
        "run",
        "check",
        "calibrate",
        "published",
        "whatif",
        "report",
        "show",
        "new",
    ):
        assert re.search(rf"^\s+{command}\b", done.stdout, re.MULTILINE), command
    assert min(seconds) < 0.3


def test_simulating_needs_no_optional_package() -> None:
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY | {"llvmlite"}!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
from sandtable.runs import predict
from sandtable.workload import scenarios
case = scenarios.load("flash_laptop", changes={{"parameters.geometry": "llama_2_7b_1l", "parameters.tokens": 2}})
print(predict.predict(case.scenario, case.workload, case.parameters, case.machine)[0].binding_resource)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("io", "memory", "compute")


# --- shape of the repository -------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["simulator", "kernels", "workloads"])
def test_a_source_root_is_not_a_package(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()
    packages = [path.parent.name for path in (ROOT / folder).glob("*/__init__.py")]
    assert packages == [{"simulator": "sandtable"}.get(folder, f"sandtable_{folder}")]


@pytest.mark.parametrize(
    "path", python_files("simulator", "kernels", "workloads"), ids=lambda path: str(path.relative_to(ROOT))
)
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES


MOST_FILES = 12
CODE = python_files("simulator", "kernels", "workloads")


def test_folders_stay_small() -> None:
    sizes = Counter(path.parent for path in CODE)
    assert {str(folder.relative_to(ROOT)): n for folder, n in sizes.items() if n > MOST_FILES} == {}


def test_no_name_is_used_for_two_modules() -> None:
    names = Counter(path.stem for path in CODE if path.stem != "__init__")
    assert [name for name, n in names.items() if n > 1] == []


def test_no_import_circle() -> None:
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts[1:]): path for path in CODE}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    seen: dict[str, bool] = {}  # true while on the way to it

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert not seen.get(name), " -> ".join((*way[way.index(name) :], name))
        if name in seen:
            return
        seen[name] = True
        for item in imports_of(modules[name]):
            if item.at_top and item.module in modules and item.module != name:
                visit(item.module, (*way, name))
        seen[name] = False

    for name in modules:
        visit(name, ())


def test_the_core_says_no_word_of_one_workload() -> None:
    words = re.compile("slm" + "_|flash_" + "inference|lit" + "gpt|pre" + "fill|tt" + "ft")
    found = [path.name for path in python_files("simulator") if words.search(path.read_text())]
    assert found == []


def tracked() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(names, capture_output=True, check=True).stdout.decode().split("\0")
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


def test_nothing_names_the_place_where_it_was_written() -> None:
    # taken apart, so that this file does not find itself
    places = ["work", "root", "home/[a-z]"]
    words = re.compile("|".join([rf"(?<![\w.])/{place}/" for place in places] + [r"local" + r"host:\d"]))
    own = Path(__file__).resolve()
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        # the contract of devices looks for the same words
        if path.resolve() != own and path.name != "test_devices.py" and words.search(text):
            found.append(str(path.relative_to(ROOT)))
    assert found == []


def test_outside_data_is_named_by_the_shared_fixture_alone() -> None:
    folder = "/".join(("shared", "reference"))
    texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in tracked()}
    found = {path.relative_to(ROOT).as_posix() for path, text in texts.items() if folder in text}
    assert found <= {"tests/contract/test_devices.py"}


def test_nothing_large_is_tracked() -> None:
    assert {str(path) for path in tracked() if path.stat().st_size > 1 << 20} == set()
