"""Images to learn from that need no download: characters in the fonts that matplotlib ships, warped and spoiled.

Each image shows one of `CHARACTERS`, 32 x 32 pixels, grey. The faces of training, validation and test differ: what is
scored is reading a face that was never seen, though its family was in another weight or slant. Everything follows from
the seed, the versions of Pillow and of the fonts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sandtable.errors import missing_extra

SIDE = 32  # pixels of an image
DRAWN_SIDE = 64  # pixels of a character as it is drawn, before it is warped
FONT_SIZE = 50  # pixels; an x is then 27 high
BASELINE = 48  # pixels from the top; of all characters, the widest W and the highest √ just reach the edge
CHUNK = 2048  # images that are warped at once: fits a cache level, and bounds the memory

LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
CHARACTERS = LATIN + "αβγδεζηθλμξπρστφχψωΓΔΘΛΞΠΣΦΨΩ" + "!?&@#%$€£§+=±÷≤≥≠∞√∂∇∈∪→←↑↓"

# faces, and whether they hold all characters or the Latin letters and digits alone
_DEJAVU = [f"DejaVu{family}" for family in ("Sans", "SansMono", "Serif")]
FACES: dict[str, tuple[tuple[str, str], ...]] = {
    "training": (
        *((f"{family}{style}", CHARACTERS) for family in _DEJAVU for style in ("", "-Bold")),
        ("DejaVuSans-Oblique", CHARACTERS),
        ("DejaVuSerif-BoldItalic", CHARACTERS),
        ("STIXGeneral", CHARACTERS),
        *((face, LATIN) for face in ("STIXGeneralItalic", "cmr10", "cmss10", "cmtt10")),
    ),
    "validation": (("DejaVuSansMono-Oblique", CHARACTERS), ("cmb10", LATIN)),
    "test": (
        *((face, CHARACTERS) for face in ("DejaVuSans-BoldOblique", "DejaVuSerif-Italic", "STIXGeneralBol")),
        *((face, LATIN) for face in ("STIXGeneralBolIta", "cmti10")),
    ),
}

Part = Literal["training", "validation", "test"]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Spoiling:
    """How far images are from what is printed: the largest, or the spread, of each change.

    Attributes:
        turn_rad, shear, zoom: Of the affine map, uniform in plus and minus; zoom is the log of the scale.
        shift_px, wobble_px: Of the whole, and of the elastic field, in pixels of the image.
        noise: Standard deviation, where black is 0 and white is 1.
        contrast: Least difference between ink and paper.
        blot_px: Largest side of the patch that hides a part.
    """

    turn_rad: float = 0.2
    shear: float = 0.2
    zoom: float = 0.2
    shift_px: float = 2.0
    wobble_px: float = 1.0
    noise: float = 0.1
    contrast: float = 0.35
    blot_px: int = 10


@dataclass(frozen=True, slots=True)
class Glyphs:
    """Images [n, side, side] of uint8, and the index of each one's character in `CHARACTERS` [n]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def glyphs(part: Part, n: int, seed: int = 0, spoiling: Spoiling | None = None) -> Glyphs:
    """Return ``n`` images of a part; each character is as frequent as the others, within one.

    Raises:
        NoDevice: matplotlib, whose fonts are drawn, is not installed.
    """
    random = np.random.default_rng((seed, list(FACES).index(part)))
    labels = random.permutation(np.arange(n) % len(CHARACTERS))
    drawn, n_faces = _drawn(part)
    faces = (random.random(n) * n_faces[labels]).astype(np.int64)
    spoiling = spoiling or Spoiling()
    images = np.empty((n, SIDE, SIDE), np.uint8)
    for first in range(0, n, CHUNK):
        these = slice(first, first + CHUNK)
        warped = _warp(drawn, labels[these], faces[these], spoiling, random)
        images[these] = _spoil(warped, spoiling, random)
    return Glyphs(images, labels)


# --- drawing ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=3)
def _drawn(part: Part) -> tuple[Floats, NDArray[np.int64]]:
    """Return a part's characters [character, face, y, x] in 0 to 1, and how many faces there are of each."""
    faces = FACES[part]
    drawn = np.zeros((len(CHARACTERS), len(faces), DRAWN_SIDE, DRAWN_SIDE), np.float32)
    n_faces = np.zeros(len(CHARACTERS), np.int64)
    for face, characters in faces:
        font = _font(face)
        for index in range(len(characters)):  # each face's characters are the first ones of all
            drawn[index, n_faces[index]] = _draw(font, CHARACTERS[index])
            n_faces[index] += 1
    return drawn, n_faces


def _font(face: str) -> Any:
    try:
        import matplotlib
        from PIL import ImageFont
    except ImportError:
        raise missing_extra("matplotlib", "report") from None
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
    return ImageFont.truetype(path, FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


def _draw(font: Any, character: str) -> Floats:
    """Return a character [y, x], its width centred, on the baseline, softened so that halving it does not alias."""
    from PIL import Image, ImageDraw, ImageFilter

    image = Image.new("L", (DRAWN_SIDE, DRAWN_SIDE))
    ImageDraw.Draw(image).text((DRAWN_SIDE / 2, BASELINE), character, fill=255, font=font, anchor="ms")
    return np.asarray(np.asarray(image.filter(ImageFilter.BoxBlur(0.5))) / np.float32(255), np.float32)


# --- warping ---------------------------------------------------------------------------------------------


def _warp(
    drawn: Floats, labels: NDArray[np.int64], faces: NDArray[np.int64], by: Spoiling, random: np.random.Generator
) -> Doubles:
    """Return the characters [n, side, side], each seen through an affine map and an elastic field of its own."""
    x, y = _places(len(labels), by, random)
    column, row = np.floor(x).astype(np.int32), np.floor(y).astype(np.int32)
    right, down = x - column, y - row
    flat = drawn.reshape(-1)
    start = ((labels * drawn.shape[1] + faces) * DRAWN_SIDE**2)[:, None, None] + row * DRAWN_SIDE + column
    upper = flat[start] * (1 - right) + flat[start + 1] * right
    lower = flat[start + DRAWN_SIDE] * (1 - right) + flat[start + DRAWN_SIDE + 1] * right
    return np.asarray(upper * (1 - down) + lower * down, np.float64)


def _places(n: int, by: Spoiling, random: np.random.Generator) -> tuple[Floats, Floats]:
    """Return where in the drawn character each pixel looks [n, side, side], as x and y, within what is drawn."""

    def uniform(limit: float) -> Floats:
        return random.uniform(-limit, limit, (n, 1, 1)).astype(np.float32)

    line = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
    turn, shear, shrink = uniform(by.turn_rad), uniform(by.shear), np.exp(uniform(by.zoom))
    dx, dy = (uniform(by.shift_px) + _field(n, by.wobble_px, random) for _ in range(2))
    x, y = line[None, None, :] + dx, line[None, :, None] + dy
    x, y = shrink * (np.cos(turn) * x - np.sin(turn) * y), shrink * (np.sin(turn) * x + np.cos(turn) * y)
    scale, centre = DRAWN_SIDE / SIDE, (DRAWN_SIDE - 1) / 2
    within = (np.clip(at * scale + centre, 0, DRAWN_SIDE - 1.01) for at in (x + shear * y, y))
    return np.asarray(next(within), np.float32), np.asarray(next(within), np.float32)


def _field(n: int, spread: float, random: np.random.Generator) -> Floats:
    """Return smooth displacements [n, side, side]: a coarse grid of normal numbers, blended between its points."""
    coarse = random.standard_normal((n, 5, 5), np.float32) * np.float32(spread)
    at = np.linspace(0, 4, SIDE, dtype=np.float32)
    blend = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(5, dtype=np.float32)))
    field: Floats = blend @ coarse @ blend.T
    return field


# --- spoiling --------------------------------------------------------------------------------------------


def _spoil(ink: Doubles, by: Spoiling, random: np.random.Generator) -> NDArray[np.uint8]:
    """Return images of light ink on darker paper, both of random greys, with a blot and noise."""
    n = len(ink)
    difference = random.uniform(by.contrast, 1, (n, 1, 1)).astype(np.float32)
    dark = random.uniform(0, 1 - difference).astype(np.float32)
    image = dark + difference * ink
    image = np.where(_blots(n, by.blot_px, random), random.random((n, 1, 1), np.float32), image)
    image += (
        random.standard_normal(image.shape, np.float32)
        * np.float32(by.noise)
        * random.random((n, 1, 1), np.float32)
    )
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


def _blots(n: int, largest: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """Return which pixels [n, side, side] lie under a rectangle of random sides and place."""

    def covered() -> NDArray[np.bool_]:
        width, start = random.integers(0, largest + 1, (n, 1)), random.integers(0, SIDE, (n, 1))
        line = np.arange(SIDE)
        return (line >= start) & (line < start + width)

    return covered()[:, :, None] & covered()[:, None, :]


def characters_of(labels: Sequence[int]) -> str:
    """Return the characters of labels, to read them."""
    return "".join(CHARACTERS[label] for label in labels)
