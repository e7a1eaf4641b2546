"""What the commands say of the events that they read, and of whom they know too little."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from sandtable.errors import ConfigError
from sandtable_workloads.rpf import HPF, FileOptions, rpf_use


def test_kinds_and_ratings_are_chosen_and_what_was_guessed_is_said(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("visitorid,itemid,event,rating,timestamp\n1,5,view,4,10\n1,6,buy,2,11\n2,5,buy,5,12\n")
    said: list[str] = []
    read = partial(rpf_use.read, path, drop_duplicates=False, say=said.append)
    table = read(FileOptions(kinds=("buy",)))
    assert (table.user.tolist(), table.item.tolist()) == ([1, 2], [6, 5])
    assert said == ["  ! user is visitorid, item is itemid, time is timestamp"]
    liked = read(FileOptions(min_rating=4.0))
    assert liked.time.tolist() == [10.0, 12.0]
    with pytest.raises(ConfigError, match="no event is of kind rent: there are buy, view"):
        read(FileOptions(kinds=("rent",)))


def test_a_user_with_one_event_is_fitted_and_said_where_a_return_is_asked_for(tmp_path: Path) -> None:
    events = (["a", "b", "a", "a"], ["x", "y", "y", "x"], np.arange(4.0))
    HPF(n_components=2, max_iter=3).fit(events).save(tmp_path / "model.npz")
    for user, word in (("a", ""), ("b", "b has one event only"), ("zoe", "zoe was never seen")):
        said: list[str] = []
        rpf_use.recommended(tmp_path / "model.npz", user, at=None, n=1, exclude=(), say=said.append)
        assert [word in text for text in said] == ([True] if word else []), user
