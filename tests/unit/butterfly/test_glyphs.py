"""Glyphs: rendered alike by a seed, labelled right, and told apart by more than chance."""

from __future__ import annotations

import numpy as np
import pytest

from sandtable.errors import NoDevice
from sandtable_workloads.butterfly.executed import glyphs as drawing
from sandtable_workloads.butterfly.executed.glyphs import CHARACTERS, FACES, LATIN, SIDE, Glyphs, Spoiling, glyphs

pytest.importorskip("matplotlib", reason="glyphs are drawn in its fonts")
CLEAN = Spoiling(turn_rad=0, shear=0, zoom=0, shift_px=0, wobble_px=0, noise=0, contrast=1, blot_px=0)


def nearest_mean(known: Glyphs, asked: Glyphs) -> float:
    """Return how many of ``asked`` are nearest to the mean image of their own character."""
    flat = known.images.reshape(len(known), -1).astype(np.float32)
    means = np.stack([flat[known.labels == label].mean(0) for label in range(len(CHARACTERS))])
    images = asked.images.reshape(len(asked), -1).astype(np.float32)
    distance = (means**2).sum(1) - 2 * images @ means.T
    return float((distance.argmin(1) == asked.labels).mean())


def test_the_seed_decides_and_parts_differ() -> None:
    one, again, other = glyphs("training", 300, 3), glyphs("training", 300, 3), glyphs("training", 300, 4)
    assert one.images.shape == (300, SIDE, SIDE)
    assert one.images.dtype == np.uint8
    np.testing.assert_array_equal(one.images, again.images)
    np.testing.assert_array_equal(one.labels, again.labels)
    assert (one.images != other.images).any()
    assert (one.images != glyphs("test", 300, 3).images).any()


def test_every_character_is_as_frequent_as_the_others_and_has_several_faces_to_learn_from() -> None:
    counts = np.bincount(glyphs("validation", 500, 1).labels, minlength=len(CHARACTERS))
    assert set(counts) <= {500 // len(CHARACTERS), 500 // len(CHARACTERS) + 1}
    assert len(set(CHARACTERS)) == len(CHARACTERS) > 100
    assert CHARACTERS.startswith(LATIN)
    full = [face for face, characters in FACES["training"] if characters == CHARACTERS]
    assert len(full) >= 8


def test_no_face_is_in_two_parts() -> None:
    faces = [face for part in FACES.values() for face, _ in part]
    assert len(set(faces)) == len(faces)


def test_every_character_is_drawn_whole_and_unlike_the_others() -> None:
    for part in FACES:
        drawn, n_faces = drawing._drawn(part)  # type: ignore[arg-type]
        assert n_faces.min() >= 1
        for index in range(len(CHARACTERS)):
            shown = drawn[index, : n_faces[index]]
            assert shown.max(axis=(1, 2)).min() > 0.5
            rim = np.concatenate([shown[:, [0, -1]].reshape(-1), shown[:, :, [0, -1]].reshape(-1)])
            assert (rim > 0).sum() <= (20 if CHARACTERS[index] in "W√" else 0), CHARACTERS[index]
        first = drawn[:, 0].reshape(len(CHARACTERS), -1)
        assert len(np.unique(first, axis=0)) == len(CHARACTERS)


def test_labels_are_right_and_spoiling_makes_it_hard() -> None:
    clean = nearest_mean(glyphs("training", 4000, 0, CLEAN), glyphs("test", 500, 1, CLEAN))
    spoiled = nearest_mean(glyphs("training", 4000, 0), glyphs("test", 500, 1))
    assert clean > 0.7
    assert 10 / len(CHARACTERS) < spoiled < 0.5 * clean


def test_unspoiled_images_are_what_is_drawn() -> None:
    drawn, _ = drawing._drawn("validation")
    few = glyphs("validation", len(CHARACTERS), 5, CLEAN)
    label = CHARACTERS.index("α")  # has one face in this part
    image = few.images[few.labels == label][0]
    halved = drawn[label, 0].reshape(SIDE, 2, SIDE, 2).mean((1, 3))
    np.testing.assert_allclose(image / 255, halved, atol=0.01)


def test_matplotlib_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(NoDevice, match=r"\[report\]"):
        drawing._font("DejaVuSans")
