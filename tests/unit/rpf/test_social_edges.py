"""Edges between users: any form, unknown users named or dropped, each edge once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sandtable.errors import ConfigError
from sandtable_workloads.rpf.events.social_edges import SocialEdges, read_edges

USERS = np.array(["a", "b", "c"], object)


@pytest.mark.parametrize(
    "edges",
    [
        pd.DataFrame({"follows": ["b", "a"], "user": ["a", "c"]}),
        {"user": ["a", "c"], "follows": ["b", "a"]},
        (["a", "c"], ["b", "a"]),
        np.array([["a", "b"], ["c", "a"]]),
    ],
    ids=["frame", "mapping", "arrays", "array"],
)
def test_edges_come_in_many_forms(edges: object) -> None:
    found = SocialEdges.of(edges).between(USERS)
    assert (found.user.tolist(), found.follows.tolist(), found.notes) == (["a", "c"], ["b", "a"], ())
    assert SocialEdges.of(found) is found


def test_an_unknown_user_is_named_or_dropped() -> None:
    edges = SocialEdges.of((["a", "a", "x", "b", "a"], ["b", "zoe", "a", "b", "b"]))
    with pytest.raises(ConfigError, match=r"edge 1 \(counted from 0\) names user zoe, who has no event"):
        edges.between(USERS)
    known = edges.between(USERS, unknown="drop")
    assert known.columns["user"].tolist() == ["a"]
    assert known.columns["follows"].tolist() == ["b"]
    assert known.notes == (
        "dropped 2 edges to or from users without events",
        "dropped 2 edges to oneself or standing twice",
    )


def test_files_of_edges(tmp_path: Path) -> None:
    path = tmp_path / "edges.csv"
    for text in ("user,follows\na,b\nc,a\n", "followee,user_id\nb,a\na,c\n", "a,b\nc,a\n", "a b\nc a\n"):
        path.write_text(text)
        found = read_edges(path)
        assert (found.user.tolist(), found.follows.tolist()) == (["a", "c"], ["b", "a"]), text
    path.write_text("who,knows,since\na,b,1\n")
    assert read_edges(path, "who", "knows").follows.tolist() == ["b"]
    with pytest.raises(ConfigError, match="no column 'whom' for user"):
        read_edges(path, "whom", "knows")


@pytest.mark.parametrize(
    ("edges", "said"),
    [
        ({"user": ["a"]}, "no column 'follows'"),
        ((["a"], ["b", "c"]), "as many of each"),
        (np.ones((2, 3)), "an array"),
        ((["a", None], ["b", "c"]), "edge 1"),
    ],
)
def test_what_is_no_edge_is_refused(edges: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SocialEdges.of(edges)
