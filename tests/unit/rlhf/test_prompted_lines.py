"""The task: prompts ask for what is true of a line, and the gold score sees what an answer lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandtable.errors import ConfigError
from sandtable_workloads.rlhf.aligned.prompted_lines import END, Prompt, PromptedLines, true_of, words_of


@pytest.fixture(scope="module")
def task() -> PromptedLines:
    return PromptedLines.of_text(None, 768, 16)


def gold(task: PromptedLines, prompt: Prompt, text: str, *, ended: bool = True) -> float:
    return task.gold(prompt, [*task.encode(text), *([END] if ended else [])])


def test_lines_survive_their_tokens(task: PromptedLines) -> None:
    known = [line for line in task.lines if set(task.encode(line)) <= set(task.tokens.values())]
    assert len(known) > 500
    assert all(words_of(task.decode(task.encode(line))) == words_of(line) for line in known)
    assert task.vocabulary == 768


def test_prompts_ask_for_what_is_true_of_their_line(task: PromptedLines) -> None:
    for n_words in (1, 2):
        for prompt in task.prompts("prompts", 200, 1, n_words=n_words):
            assert len(prompt.words) == n_words
            assert set(prompt.words) <= set(words_of(prompt.line))
            assert set(prompt.conditions) <= set(true_of(prompt.line))
            assert len(prompt.tokens) <= task.max_prompt


def test_the_parts_share_no_line_and_draws_follow_their_seed(task: PromptedLines) -> None:
    assert not set(task.split("train")) & set(task.split("prompts"))
    assert task.prompts("train", 20, 1) == task.prompts("train", 20, 1)
    assert task.prompts("train", 20, 1) != task.prompts("train", 20, 2)


def test_gold_falls_with_everything_that_an_answer_lacks(task: PromptedLines) -> None:
    prompt = task.prompt(["king"], ["question", "short"])
    good = gold(task, prompt, "what says the king?")
    assert good > 0.9
    assert gold(task, prompt, "what says the lord?") < good
    assert gold(task, prompt, "what says the king.") < good
    assert gold(task, prompt, "what says the king to all of you and me now?") < good
    assert gold(task, prompt, "king king king king?") < good
    assert gold(task, prompt, "what says the king?", ended=False) == pytest.approx(good / 2)
    assert gold(task, prompt, "") == 0


def test_a_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("one line of words\nanother line of words\n")
    with pytest.raises(ConfigError, match=r"2 different lines .*200 are needed"):
        PromptedLines.of_text(str(path), 768, 16)
