"""The task: write a line about something, as a question, say, and short. Real text, and a gold score none ever sees.

A prompt is a word that many lines have, how the line is to end and how long it is to be, as far as that is asked; its
answer is a line of the text of which all this is true. The gold score looks at the text of an answer: whether it does
as asked, whether neighbours in it are neighbours in the text, whether it repeats itself, and whether it ends. Prompts
with two words are out of distribution: no model learned from any. No PyTorch in here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from sandtable.errors import ConfigError
from sandtable_workloads.training.executed.tokens import read_text

Split = Literal["train", "prompts"]
SPLITS: dict[Split, tuple[float, float]] = {"train": (0.0, 0.8), "prompts": (0.8, 1.0)}
PAD, SEPARATOR, END, RARE = 0, 1, 2, 3
ENDINGS = {"question": "?", "exclamation": "!", "statement": "."}
LENGTHS = {"short": (1, 6), "long": (9, 99)}  # fewest and most words
CONDITIONS = {name: 4 + index for index, name in enumerate((*ENDINGS, *LENGTHS))}
N_SPECIAL = 4 + len(CONDITIONS)
# words that are asked for: the most common ones with four letters, but for those that say nothing
SHORTEST_WORD, TOO_COMMON, N_TOPICS = 4, 24, 24
FEWEST_LINES = 200
ASKED = 0.75  # chance that a condition that holds is asked for
# parts of the gold score; those of conditions that are not asked for count for nothing
COVERED, ENDED_AS_ASKED, LONG_AS_ASKED, FLUENT, FRESH = 0.4, 0.2, 0.15, 0.1, 0.15
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*|~")
MARKS = ".,;:!?"
_PIECE = re.compile(rf"{_WORD.pattern}|[{MARKS}]")
_START, _UNKNOWN = "", "~"  # what stands for a line's beginning, and for a rare word


class Prompt(NamedTuple):
    """What is asked for: words, conditions by their names, all as tokens, and the line that they are from."""

    words: tuple[str, ...]
    conditions: tuple[str, ...]
    tokens: tuple[int, ...]
    line: str


def words_of(text: str) -> list[str]:
    """Return the words of a text that is in lower case; a tilde is one that is not known."""
    return _WORD.findall(text)


def true_of(text: str) -> tuple[str, ...]:
    """Return the conditions that a line meets."""
    n = len(words_of(text))
    endings = [name for name, mark in ENDINGS.items() if text.endswith(mark)]
    return (*endings, *(name for name, (fewest, most) in LENGTHS.items() if fewest <= n <= most))


@dataclass(frozen=True)
class PromptedLines:
    """Lines of a text, their tokens, and prompts made of them. A token is a word or a mark; rare ones share one.

    Attributes:
        lines: All of at most ``max_answer`` tokens with the end token, in an order of their own.
        topics: Words that are asked for.
        tokens: The models' token of each word and mark, the most common first.
        neighbours: Pairs of words that follow each other in the text, a line's start included.
        max_answer: Tokens of the longest answer, the end token included.
    """

    lines: tuple[str, ...]
    topics: frozenset[str]
    tokens: Mapping[str, int]
    neighbours: frozenset[tuple[str, str]]
    max_answer: int

    @classmethod
    def of_text(cls, text: str | None, vocabulary: int, max_answer: int) -> PromptedLines:
        """Read a text.

        Args:
            text: Path; None for the one that ships.
            vocabulary: Tokens at most.
            max_answer: Lines of more tokens, the end token included, are left out.

        Raises:
            ConfigError: it cannot be read, or has too few lines.
        """
        spoken = [line.strip().lower() for line in read_text(text).splitlines()]
        spoken = [line for line in dict.fromkeys(spoken) if words_of(line) and not line.endswith(":")]
        lines = [line for line in spoken if len(_PIECE.findall(line)) < max_answer]
        if len(lines) < FEWEST_LINES:
            raise ConfigError(
                f"the text has {len(lines)} different lines of fewer than {max_answer} words and {FEWEST_LINES} are "
                "needed: give a longer text, or allow longer answers"
            )
        pieces = Counter(piece for line in lines for piece in _PIECE.findall(line))
        common = [piece for piece, _ in pieces.most_common(max(0, vocabulary - N_SPECIAL))]
        topics = [piece for piece in common if len(piece) >= SHORTEST_WORD][TOO_COMMON : TOO_COMMON + N_TOPICS]
        order = np.random.default_rng(0).permutation(len(lines))
        return cls(
            lines=tuple(lines[index] for index in order),
            topics=frozenset(topics),
            tokens={piece: N_SPECIAL + index for index, piece in enumerate(common)},
            neighbours=frozenset(pair for line in spoken for pair in pairwise([_START, *words_of(line)])),
            max_answer=max_answer,
        )

    @property
    def vocabulary(self) -> int:
        """Tokens of a model, special ones included."""
        return N_SPECIAL + len(self.tokens)

    @property
    def max_prompt(self) -> int:
        """Tokens of the longest prompt: two conditions, two words and the separator."""
        return 5

    @cached_property
    def _pieces(self) -> list[str]:
        return list(self.tokens)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a line or of a word in it."""
        return [self.tokens.get(piece, RARE) for piece in _PIECE.findall(text)]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens up to the end token, with a tilde for each rare word."""
        cut = tokens[: tokens.index(END)] if END in tokens else tokens
        pieces = [self._pieces[t - N_SPECIAL] if t >= N_SPECIAL else _UNKNOWN for t in cut if t >= RARE]
        return "".join(piece if piece in MARKS else f" {piece}" for piece in pieces).strip()

    def split(self, name: Split) -> Sequence[str]:
        """Return the lines of a part."""
        first, last = (int(share * len(self.lines)) for share in SPLITS[name])
        return self.lines[first:last]

    def prompts(self, split: Split, n: int, *seed: int, n_words: int = 1) -> list[Prompt]:
        """Draw ``n`` lines of a part that have so many topics, and ask for them and for half of what is true."""
        lines = [line for line in self.split(split) if len(self._asked(line)) >= n_words]
        if not lines:
            raise ConfigError(f"no line of the text has {n_words} of its common words: give a longer text")
        return list(self._drawn(lines, n, np.random.default_rng(seed), n_words))

    def _drawn(self, lines: Sequence[str], n: int, rng: np.random.Generator, n_words: int) -> Iterator[Prompt]:
        for index in rng.integers(len(lines), size=n):
            line = lines[int(index)]
            asked = self._asked(line)
            words = [asked[i] for i in rng.permutation(len(asked))[:n_words]]
            yield self.prompt(words, [name for name in true_of(line) if rng.random() < ASKED], line)

    def _asked(self, line: str) -> list[str]:
        return [word for word in dict.fromkeys(words_of(line)) if word in self.topics]

    def prompt(self, words: Sequence[str], conditions: Sequence[str] = (), line: str = "") -> Prompt:
        """Return the prompt that asks for words and conditions."""
        named = [CONDITIONS[name] for name in conditions]
        return Prompt(tuple(words), tuple(conditions), (*named, *self.encode(" ".join(words)), SEPARATOR), line)

    def gold(self, prompt: Prompt, answer: Sequence[int]) -> float:
        """Return how good an answer is, from 0 to 1; one that does not end is half as good."""
        text = self.decode(answer)
        words = words_of(text)
        if not words:
            return 0.0
        met = true_of(text)
        parts = [
            (COVERED, sum(word in words for word in prompt.words) / len(prompt.words)),
            (FLUENT, sum(pair in self.neighbours for pair in pairwise([_START, *words])) / len(words)),
            (FRESH, len(set(words)) / len(words)),
            *(
                (ENDED_AS_ASKED if name in ENDINGS else LONG_AS_ASKED, float(name in met))
                for name in prompt.conditions
            ),
        ]
        found = sum(share * part for share, part in parts) / sum(share for share, _ in parts)
        return found if END in answer else found / 2
