"""Every command that a README shows is run here, or, where it would take long or measure, looked up in the help."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from sandtable import plugins
from sandtable.contracts import run_command
from sandtable.hardware import Machine, library
from sandtable.workload import scenarios

ROOT = Path(__file__).resolve().parents[3]
READMES = ("README.md", *(f"{folder}/README.md" for folder in ("devices", "kernels", "workloads", "simulator")))
# these execute for real, take long, or write into the library
LOOKED_UP = ("run", "check", "calibrate", "new")
# stands for something of the user's own
PLACEHOLDER = re.compile(r"\b(DIR|FILE|NAME|RUN|SCENARIO|PATH|VALUE|DATA_DIR|EVENTS|MODEL|USER)\b|…|\.\.\.")


class Command(NamedTuple):
    """One command line of a README, without comment."""

    where: str
    words: tuple[str, ...]


def fenced(text: str) -> list[tuple[int, str]]:
    """Return the lines inside ``bash`` and ``console`` fences, with their numbers."""
    lines, inside = [], False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            inside = not inside and line.strip() in ("```bash", "```console", "```sh")
        elif inside:
            lines.append((number, line))
    return lines


def commands() -> tuple[list[Command], list[Command]]:
    """Return the commands inside fences, and those within a sentence or a table."""
    found, inline = [], []
    for name in READMES:
        text = (ROOT / name).read_text() if (ROOT / name).is_file() else ""
        for number, line in fenced(text):
            shown = line.strip().removeprefix("$ ")
            if shown.startswith("sandtable "):
                found.append(Command(f"{name}:{number}", tuple(shlex.split(shown, comments=True))))
        for number, line in enumerate(text.splitlines(), 1):
            for shown in re.findall(r"(?<!`)`(sandtable [a-z][^`]*)`(?!`)", line):
                inline.append(Command(f"{name}:{number}", tuple(shlex.split(shown))))
    return found, inline


COMMANDS, INLINE = commands()
every_command = pytest.mark.parametrize("command", [*COMMANDS, *INLINE], ids=lambda command: command.where)


def is_looked_up(command: Command) -> bool:
    return command.words[1] in LOOKED_UP or any(PLACEHOLDER.search(word) for word in command.words)


@pytest.fixture(autouse=True)
def here(in_tmp: Path, machine: Machine) -> Path:
    library.save_component(machine.model_copy(update={"name": "this_machine"}), Path("this_machine.yaml"))
    return in_tmp


def test_the_readmes_show_commands() -> None:
    assert (ROOT / "README.md").is_file()
    assert len(COMMANDS) >= 10
    shown = {command.words[1] for command in COMMANDS}
    assert {"simulate", "calibrate", "check", "whatif", "list", "show"} <= shown


def test_fences_are_read_as_meant() -> None:
    plain, shell = "```\nsandtable no\n```\n", "```bash\nsandtable a  # why\n```\n"
    text = f"{plain}{shell}  ```console\n  $ sandtable b\n  ```\nsandtable no\n{plain}"
    assert [line.strip() for _, line in fenced(text)] == ["sandtable a  # why", "$ sandtable b"]


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if not is_looked_up(command)], ids=lambda command: command.where
)
def test_a_command_runs(command: Command) -> None:
    before = {path.name for path in ROOT.iterdir()}
    if "latest" in command.words:
        assert run_command("simulate", "flash_laptop").code in (0, 3)
    for option, package in (("--trace", "perfetto"), ("--report", "matplotlib"), ("report", "matplotlib")):
        if option in command.words:
            pytest.importorskip(package)
    ran = run_command(*command.words[1:])
    # a scenario may state a threshold that its machine does not hold
    assert ran.code in ((0, 3) if command.words[1] in ("simulate", "report") else (0,)), ran.err
    assert "Traceback" not in ran.err
    assert ran.out.strip() or command.words[1] == "report"
    for option in ("--trace", "--report", "-o", "--output"):
        if option in command.words:
            assert Path(command.words[command.words.index(option) + 1]).stat().st_size > 0
    assert {path.name for path in ROOT.iterdir()} == before


def answers() -> list[tuple[Command, str]]:
    """Return the commands of the main README whose answer stands in the block below, with it."""
    text = (ROOT / "README.md").read_text()
    found = re.findall(r"(?:^|\n)(sandtable [^\n]*)\n```\n\n```text\n(.*?)\n```\n", text, re.DOTALL)
    return [(Command("README.md", tuple(shlex.split(words))), answer) for words, answer in found]


@pytest.mark.parametrize(("command", "answer"), answers(), ids=lambda item: getattr(item, "words", "")[1:2] or None)
def test_an_answer_is_the_one_that_is_shown(command: Command, answer: str) -> None:
    assert run_command(*command.words[1:]).out.rstrip() == answer


def test_the_readme_opens_with_an_answer() -> None:
    assert [command.words[1] for command, _ in answers()] == ["simulate", "whatif"]
    before, _, _ = (ROOT / "README.md").read_text().partition("\nsandtable simulate")
    assert len(before.splitlines()) < 15
    assert "source .venv/bin/activate" in before


@every_command
def test_a_command_and_its_options_exist(command: Command) -> None:
    # of a package's own commands, the second word is one of them
    name = command.words[1:3] if command.words[1] in plugins.command_modules() else command.words[1:2]
    shown = run_command(*name, "--help")
    assert shown.code == 0, f"{command.where}: there is no command {name!r}"
    known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", shown.out))
    used = {word.split("=")[0] for word in command.words[2:] if word.startswith("-")}
    assert used <= known, f"{command.where}: {name} has no option {', '.join(sorted(used - known))}"


def values_of(command: Command, option: str) -> list[str]:
    words = command.words
    return [words[i + 1] for i, word in enumerate(words[:-1]) if word == option]


@every_command
def test_what_a_command_names_exists(command: Command) -> None:
    if any(PLACEHOLDER.search(word) for word in command.words):
        return
    suites = values_of(command, "--suite")
    assert set(suites) <= set(scenarios.suite_files())
    for name in values_of(command, "--machine"):
        library.load_machine(name)
    if command.words[1] not in ("simulate", "run", "check", "whatif") or "--resume" in command.words:
        return
    taken = {value for option in command.words if option.startswith("-") for value in values_of(command, option)}
    names = [word for word in command.words[2:] if not word.startswith("-") and word not in taken]
    assert names or suites
    for name in names:
        scenarios.load(name, changes=scenarios.changes_of(values_of(command, "--set")))


def test_links_between_readmes_lead_somewhere() -> None:
    for name in READMES:
        path = ROOT / name
        if not path.is_file():
            continue
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{name} links to {target}"


def test_files_named_in_the_readmes_exist() -> None:
    for name in READMES:
        path = ROOT / name
        for target in re.findall(r"`([\w/]+/[\w/]+\.(?:py|md|yaml))`", path.read_text() if path.is_file() else ""):
            if not target.startswith(("runs/", "stores/")):
                assert (ROOT / target).exists() or (path.parent / target).exists(), f"{name} names {target}"


def test_no_placeholder_was_left_in() -> None:
    for name in READMES:
        if (ROOT / name).is_file():
            assert not re.search(r"\b(TODO|FIXME|XXX|\w+_PLACEHOLDER)\b", (ROOT / name).read_text()), name
