"""Byte-pair encoding trained on the text itself, small enough to read in one sitting.

Text is cut into words (a space belongs to the word after it), and merges never cross a word, as in GPT-2's encoder.
Tokens 0 to 255 are the bytes; token 256 + i is the i-th merge.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

Pair = tuple[int, int]

N_BYTES = 256
_WORD = re.compile(r" ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+")


def words_of(text: str) -> list[str]:
    """Cut text into words; joined again they are the text."""
    words, position = [], 0
    for match in _WORD.finditer(text):
        if match.start() > position:
            words.append(text[position : match.start()])
        words.append(match.group())
        position = match.end()
    return words if position == len(text) else [*words, text[position:]]


def train(text: str, vocabulary: int) -> list[Pair]:
    """Return up to ``vocabulary`` - 256 merges, the most frequent pair first; ties go to the smaller pair."""
    counts = Counter(words_of(text))
    words = [list(word.encode()) for word in counts]
    times = list(counts.values())
    pairs: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, word in enumerate(words):
        _count(word, index, times[index], pairs, where)
    merges: list[Pair] = []
    while len(merges) < vocabulary - N_BYTES and pairs:
        best = max(pairs, key=lambda pair: (pairs[pair], -pair[0], -pair[1]))
        if pairs[best] < 2:
            break
        merges.append(best)
        for index in sorted(where[best]):
            _count(words[index], index, -times[index], pairs, where)
            words[index] = _merged(words[index], best, N_BYTES + len(merges) - 1)
            _count(words[index], index, times[index], pairs, where)
    return merges


def _count(
    word: Sequence[int], index: int, times: int, pairs: Counter[Pair], where: defaultdict[Pair, set[int]]
) -> None:
    """Add a word's pairs ``times`` times, or take them away where that is negative."""
    for pair in pairwise(word):
        pairs[pair] += times
        if times > 0:
            where[pair].add(index)
        elif pairs[pair] <= 0:
            del pairs[pair]
            where.pop(pair, None)


def _merged(word: Sequence[int], pair: Pair, token: int) -> list[int]:
    result: list[int] = []
    index = 0
    while index < len(word):
        if index + 1 < len(word) and (word[index], word[index + 1]) == pair:
            result.append(token)
            index += 2
        else:
            result.append(word[index])
            index += 1
    return result


class Encoder:
    """Turns text into tokens and back, with the merges of `train`."""

    def __init__(self, merges: Sequence[Pair]) -> None:
        self.merges = list(merges)
        self._rank = {pair: rank for rank, pair in enumerate(self.merges)}
        self._bytes = [bytes([value]) for value in range(N_BYTES)]
        for left, right in self.merges:
            self._bytes.append(self._bytes[left] + self._bytes[right])
        self._known: dict[str, list[int]] = {}

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return len(self._bytes)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of ``text``."""
        return [token for word in words_of(text) for token in self._word(word)]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ``tokens``; bytes that are no text become a replacement character."""
        return b"".join(self._bytes[token] for token in tokens).decode(errors="replace")

    def _word(self, word: str) -> list[int]:
        known = self._known.get(word)
        if known is None:
            known = self._known[word] = self._merge_all(list(word.encode()))
        return known

    def _merge_all(self, tokens: list[int]) -> list[int]:
        """Apply the earliest merge that fits, again and again."""
        while len(tokens) > 1:
            ranks = [(self._rank.get(pair, len(self._rank)), pair) for pair in pairwise(tokens)]
            rank, pair = min(ranks)
            if rank == len(self._rank):
                break
            tokens = _merged(tokens, pair, N_BYTES + rank)
        return tokens
