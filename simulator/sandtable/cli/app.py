"""The command line: parse, call one function, print, leave with the right exit code.

stdout carries the result and nothing else; progress, warnings and hints go to stderr. Heavy libraries are imported
by the commands that use them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer

from sandtable import __version__
from sandtable.cli import calibrate_command, library_commands, scenario_commands, study_commands
from sandtable.cli.options import app
from sandtable.cli.pipes import patient_stdout
from sandtable.cli.terminal import say
from sandtable.errors import ConfigError, DoesNotFit, SandtableError
from sandtable.system import caches, limits

# importing a module of commands adds them to the application, in this order
COMMANDS = (library_commands, scenario_commands, study_commands, calibrate_command)
INTERRUPTED = 130


def _version(value: bool) -> None:
    if value:
        print(f"sandtable {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Hold the options that every command shares."""
    root.debug = debug  # type: ignore[attr-defined]


def main() -> None:
    """Run the command line; every deliberate error leaves with its own exit code and one sentence."""
    before = _end_politely()
    caches.provide()
    try:
        with patient_stdout():
            app(prog_name="sandtable")
    except SandtableError as error:
        _leave(str(error), error.exit_code)
    except OSError as error:
        # a file or folder that the user named: a full disk does not fit, all else is the wrong name
        name = error.filename2 or error.filename
        where = "" if name is None else f"{name}: "
        if error.errno == errno.ENOMEM:
            _leave(limits.out_of_memory(f"{where}{error.strerror}"), DoesNotFit.exit_code)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        _leave(f"{where}{error.strerror or error}", DoesNotFit.exit_code if full else ConfigError.exit_code)
    except MemoryError as error:
        _leave(limits.out_of_memory(error), DoesNotFit.exit_code)
    except (KeyboardInterrupt, SystemExit) as left:
        # typer turns an interruption into this exit code
        code = INTERRUPTED if isinstance(left, KeyboardInterrupt) else left.code
        if code == INTERRUPTED:
            say(f"sandtable: interrupted; {'; '.join(_kept(left)) or 'nothing was finished yet'}")
        sys.exit(code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_politely() -> dict[int, Any]:
    """Give whoever ends a program what Ctrl-C gives, so that the finished part is saved; return the handlers before.

    What is ignored, as by ``nohup``, stays ignored.
    """
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    return before


def _kept(left: BaseException) -> list[str]:
    """Return what those whom an interruption passed say that they saved, as notes on it."""
    found: list[str] = []
    cause: BaseException | None = left
    while cause is not None:
        found += getattr(cause, "__notes__", [])
        cause = cause.__cause__ or cause.__context__
    return list(dict.fromkeys(found))


def _leave(sentence: str, code: int) -> NoReturn:
    if getattr(root, "debug", False):
        traceback.print_exc()
    say(f"sandtable: {sentence}")
    sys.exit(code)


if __name__ == "__main__":
    main()
