"""Who follows whom: edges from a file or a table, held against the users that there are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sandtable.errors import ConfigError
from sandtable_workloads.rpf.events.event_checks import many
from sandtable_workloads.rpf.events.file_layouts import column_of, layout_of, regular

Unknown = Literal["refuse", "drop"]


@dataclass(frozen=True, eq=False)
class SocialEdges:
    """E edges: ``user`` [E] follows ``follows`` [E], both ids; and what was left out, a sentence each."""

    user: NDArray[Any]
    follows: NDArray[Any]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.user.size

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """What estimators take as ``edges``."""
        return {"user": self.user, "follows": self.follows}

    @classmethod
    def of(cls, edges: Any) -> SocialEdges:
        """Take a frame or mapping with columns ``user`` and ``follows``, two arrays, or an array [E, 2].

        Raises:
            ConfigError: anything else, or an end that is missing.
        """
        import pandas as pd

        if isinstance(edges, cls):
            return edges
        if isinstance(edges, Mapping) or hasattr(edges, "columns"):
            missing = [name for name in ("user", "follows") if name not in edges]
            if missing:
                raise ConfigError(f"edges have no column {missing[0]!r}: a row says that `user` follows `follows`")
            ends = edges["user"], edges["follows"]
        elif isinstance(edges, tuple | list) and len(edges) == 2:
            ends = edges[0], edges[1]
        else:
            array = np.asarray(edges)
            if array.ndim != 2 or array.shape[1] != 2:
                raise ConfigError("edges are a table with columns user and follows, two arrays, or an array [E, 2]")
            ends = array[:, 0], array[:, 1]
        user, follows = (np.asarray(end) for end in ends)
        if user.shape != follows.shape:
            raise ConfigError(f"edges have {user.size} users and {follows.size} that they follow: as many of each")
        for end in (user, follows):
            if (gone := pd.isna(end)).any():
                raise ConfigError(f"edge {int(np.argmax(gone))} (counted from 0): an end is missing")
        return cls(user, follows)

    def between(self, user_ids: NDArray[Any], unknown: Unknown = "refuse") -> SocialEdges:
        """Return the edges between known users, each once, none to oneself.

        Args:
            user_ids: [U], the users that have events.
            unknown: What to do with an edge to or from any other: ``refuse`` it, or ``drop`` it and say so.

        Raises:
            ConfigError: an unknown user that is refused, by name.
        """
        import pandas as pd

        index = pd.Index(user_ids)
        places = np.stack([index.get_indexer(pd.Index(end)) for end in (self.user, self.follows)])
        outside = (places < 0).any(axis=0)
        if outside.any() and unknown == "refuse":
            row = int(np.argmax(outside))
            end = self.user if places[0, row] < 0 else self.follows
            raise ConfigError(
                f"edge {row} (counted from 0) names user {end[row]!s}, who has no event: drop such edges, or add events"
            )
        kept = ~outside & (places[0] != places[1])
        _, first = np.unique(places[0] * len(user_ids) + places[1], return_index=True)
        once = np.zeros(len(self), np.bool_)
        once[first] = True
        notes = _left_out(int(outside.sum()), int((~outside & ~(kept & once)).sum()))
        kept &= once
        return SocialEdges(self.user[kept], self.follows[kept], (*self.notes, *notes))


def _left_out(n_outside: int, n_again: int) -> list[str]:
    found = [(n_outside, "to or from users without events"), (n_again, "to oneself or standing twice")]
    return [f"dropped {many(n, 'edge')} {what}" for n, what in found if n]


def read_edges(path: str | os.PathLike[str], user: str | None = None, follows: str | None = None) -> SocialEdges:
    """Read a file of edges, CSV, TSV or Parquet: who follows (`user`), and whom (`follows`); by name, or in this order.

    Raises:
        ConfigError: what is no such file.
    """
    import pandas as pd

    path = Path(path)
    regular(path)
    if path.suffix in (".parquet", ".pq"):
        frame = pd.read_parquet(path)
        columns = tuple(map(str, frame.columns))
    else:
        layout = layout_of(path, frozenset(name for name in (user, follows) if name is not None))
        columns = layout.columns
        frame = pd.read_csv(
            path,
            sep=layout.separator,
            header=None,
            skiprows=1 if layout.has_names else 0,
            names=list(columns),
            keep_default_na=False,
            na_values=[""],
        )
    ends = column_of("user", columns, user, str(path)), column_of("follows", columns, follows, str(path))
    if None in ends and len(columns) != 2:
        raise ConfigError("which columns are user and follows? Name them so, or say which", file=str(path), line=1)
    named = columns[:2] if None in ends else ends
    return SocialEdges.of({"user": frame[named[0]], "follows": frame[named[1]]})
