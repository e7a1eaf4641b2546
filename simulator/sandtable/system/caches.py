"""Where libraries keep what they compiled, for whoever has no home that can be written: containers, services."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# of Numba, matplotlib and PyTorch's compiler, and what each calls its folder
_VARIABLES = ("NUMBA_CACHE_DIR", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR")


def provide() -> None:
    """Point libraries to a folder of this user's in the temporary folder, if the home cannot be written.

    What the user has set stays. Code is loaded from there, so a folder that belongs to somebody else, or that others
    may write, is never taken.
    """
    if _can_write(_usual()):
        return
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        base = _own_folder()
        os.environ.update({name: str(base / name.lower()) for name in missing})
        for name in missing:
            Path(os.environ[name]).mkdir(exist_ok=True)


def _usual() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        return Path(os.devnull) / "home"


def _can_write(folder: Path) -> bool:
    """Whether files can be made in a folder, or in the one above where it would be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _own_folder() -> Path:
    path = Path(tempfile.gettempdir()) / f"sandtable-cache-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    about = path.lstat()
    if about.st_uid == os.getuid() and about.st_mode & 0o077 == 0 and not path.is_symlink():
        return path
    return Path(tempfile.mkdtemp(prefix="sandtable-cache-"))
