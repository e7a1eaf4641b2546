"""Text to tokens to batches: nothing is lost on the way, and what comes when follows from the seed."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandtable.errors import ConfigError
from sandtable_workloads.training.executed import bpe
from sandtable_workloads.training.executed.tokens import Batches, prepare_tokens, read_text

TEXT = "the cat sat on the mat; the rat sat on the cat.\n" * 20


@given(st.text(max_size=60))
def test_words_join_to_the_text(text: str) -> None:
    assert "".join(bpe.words_of(text)) == text


@given(st.text(max_size=60))
def test_encoding_is_lossless_even_for_text_never_seen(text: str) -> None:
    encoder = bpe.Encoder(bpe.train(TEXT, 280))
    text = text.encode(errors="ignore").decode()
    assert encoder.decode(encoder.encode(text)) == text


def test_the_most_frequent_pair_is_merged_first() -> None:
    merges = bpe.train("abababab xyxy", 258)
    assert merges[0] == (ord("a"), ord("b"))
    assert bpe.Encoder(merges).encode("ab") == [256]


def test_counts_kept_on_the_fly_equal_counts_made_anew() -> None:
    """The same merges as a trainer that recounts all pairs after every merge."""
    words = [list(word.encode()) for word in bpe.words_of(TEXT)]
    wanted = []
    for token in range(256, 280):
        counts: dict[tuple[int, int], int] = {}
        for word in words:
            for pair in pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=lambda pair: (counts[pair], -pair[0], -pair[1]), default=None)
        if best is None or counts[best] < 2:
            break
        wanted.append(best)
        words = [bpe._merged(word, best, token) for word in words]
    assert bpe.train(TEXT, 280) == wanted


def test_more_merges_make_shorter_texts() -> None:
    lengths = [len(bpe.Encoder(bpe.train(TEXT, size)).encode(TEXT)) for size in (256, 264, 280)]
    assert lengths[0] == len(TEXT.encode())
    assert lengths[0] > lengths[1] > lengths[2]


def test_the_shipped_text_is_real_and_large_enough() -> None:
    text = read_text(None)
    assert text.startswith("First Citizen:")
    assert 200_000 < len(text) < 400_000


def test_tokens_are_written_once_and_split(tmp_path: Path) -> None:
    first = prepare_tokens(tmp_path, text=None, tokenizer="byte", vocabulary=256)
    stamp = first.path.stat().st_mtime_ns
    again = prepare_tokens(tmp_path, text=None, tokenizer="byte", vocabulary=32000)
    assert (again.path, again.path.stat().st_mtime_ns) == (first.path, stamp)
    train, validation = first.split("train"), first.split("validation")
    assert bytes(np.concatenate([train, validation]).astype(np.uint8)).decode() == read_text(None)
    assert len(validation) == pytest.approx(0.1 * first.n_tokens, abs=1)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_text_of_ones_own_is_encoded(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(TEXT)
    tokens = prepare_tokens(tmp_path, text=str(file), tokenizer="bpe", vocabulary=264)
    assert tokens.n_tokens < len(TEXT)
    assert tokens.split("train").max() >= 256


@pytest.mark.parametrize(
    ("text", "vocabulary", "sentence"),
    [("missing.txt", 256, "No such file"), (None, 100, "needs at least 256")],
)
def test_a_text_that_cannot_be_used_is_refused(
    tmp_path: Path, text: str | None, vocabulary: int, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        prepare_tokens(tmp_path, text=text, tokenizer="byte", vocabulary=vocabulary)


def test_a_binary_file_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "binary"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        prepare_tokens(tmp_path, text=str(file), tokenizer="byte", vocabulary=256)


# --- batches -----------------------------------------------------------------------------------------------


def batches(n_tokens: int = 1001, **changes: int) -> Batches:
    values = {"sequence_tokens": 10, "batch": 2, "seed": 7} | changes
    return Batches(tokens=np.arange(n_tokens, dtype=np.uint16), **values)


def test_targets_are_the_next_tokens() -> None:
    inputs, targets = batches().at(3)
    assert inputs.shape == targets.shape == (2, 10)
    np.testing.assert_array_equal(inputs + 1, targets)


def test_an_epoch_visits_every_window_once() -> None:
    data = batches()
    starts = [int(row[0]) for step in range(50) for row in data.at(step)[0]]
    assert sorted(starts) == list(range(0, 1000, 10))
    assert starts != sorted(starts)
    second = [int(row[0]) for step in range(50, 100) for row in data.at(step)[0]]
    assert sorted(second) == sorted(starts)
    assert second != starts


def test_ranks_share_what_one_rank_alone_would_see() -> None:
    alone = batches(batch=4).at(5)[0]
    dealt = [batches(batch=2, rank=rank, n_ranks=2).at(5)[0] for rank in range(2)]
    np.testing.assert_array_equal(np.concatenate(dealt), alone)


def test_accumulation_sees_what_a_larger_batch_would() -> None:
    whole = batches(batch=6).at(2)[0]
    parts = [batches(accumulation=3).at(2, micro)[0] for micro in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_the_order_is_the_seeds() -> None:
    np.testing.assert_array_equal(batches().at(1)[0], batches().at(1)[0])
    assert not np.array_equal(batches().at(1)[0], batches(seed=8).at(1)[0])


def test_a_text_shorter_than_a_sequence_is_refused() -> None:
    with pytest.raises(ConfigError, match="shorter sequences"):
        batches(n_tokens=10)
