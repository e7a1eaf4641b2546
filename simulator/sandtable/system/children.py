"""Child processes that run our code: nothing of the current folder is imported, and none outlives its parent.

``python -m sandtable.system.children LIFELINE PARENT MODULE ARGUMENTS...`` runs a module as its own program. The
lifeline is a pipe that the parent alone can write to, and never does: its end is the parent's, however that came
about. On Linux the system ends the child as well (prctl(2), PR_SET_PDEATHSIG), even while it holds the interpreter.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
import threading
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

_PR_SET_PDEATHSIG = 1
# what programs that launch ranks, such as torchrun, tell theirs: not meant for ours
_OF_LAUNCHERS = {
    *("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE"),
}
_PREFIX_OF_LAUNCHERS = "TORCHELASTIC_"
# what `set_for_this_process` set
_own: set[str] = set()


def started(module: str, arguments: Iterable[object], *, inherit: Iterable[int] = ()) -> dict[str, Any]:
    """Return what `subprocess.Popen` needs to run a module: its command, and the descriptors that it inherits."""
    # the system's signal follows the end of the thread that started the child; only the main one lives long enough
    parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
    words = (sys.executable, "-P", "-m", "sandtable.system.children", _lifeline(), parent, module, *arguments)
    return {"args": [str(word) for word in words], "pass_fds": (_lifeline(), *inherit)}


def set_for_this_process(name: str, value: str) -> None:
    """Set a variable of the environment that has no value yet, for libraries of this process and not for children."""
    if name not in os.environ:
        os.environ[name] = value
        _own.add(name)


def environment() -> dict[str, str]:
    """Return the environment for children: this process's, without what launchers or it put there for itself alone."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_LAUNCHERS | _own and not name.startswith(_PREFIX_OF_LAUNCHERS)
    }
    return kept | {"PYTHONSAFEPATH": "1"}


@lru_cache(maxsize=1)
def _pipe(_pid: int) -> tuple[int, int]:
    return os.pipe()  # neither end is inherited unless asked for


def _lifeline() -> int:
    """Return the end of this process's pipe that its children read."""
    return _pipe(os.getpid())[0]


def _end_with_parent(lifeline: int, parent: int) -> None:
    def watch() -> None:
        os.read(lifeline, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="lifeline").start()
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before we asked
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Watch the parent, and run the module that the arguments name."""
    _, lifeline, parent, module, *arguments = sys.argv
    _end_with_parent(int(lifeline), int(parent))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
