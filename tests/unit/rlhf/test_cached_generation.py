"""Answers drawn with a cache are those that the whole sequence gives, whatever the prompts' lengths and the batch."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the policy is PyTorch's")

from sandtable_workloads.rlhf.aligned.cached_generation import Cache, Sampling, draw, generate, uniforms  # noqa: E402
from sandtable_workloads.rlhf.aligned.policy_model import Policy, answer_logits, divergences, log_probs  # noqa: E402
from sandtable_workloads.transformer.shapes import ModelShape  # noqa: E402

END = 2
PROMPTS = [[3], [5, 4, 3, 6], [7, 8], [4, 4, 4], [9], [10, 11, 3, 5, 6]]


def policy(seed: int = 1, n_kv_heads: int = 4, scale: float = 12.0) -> Policy:
    shape = ModelShape(
        name="t",
        n_layers=2,
        d_model=32,
        n_neurons=48,
        n_vectors=3,
        n_heads=4,
        n_kv_heads=n_kv_heads,
        head_dim=8,
        vocabulary=17,
    )
    made = Policy(shape, 24)
    made.initialise(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)  # else all tokens are nearly as likely, and nothing shows
    return made


@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_cached_logits_are_those_of_the_whole_sequence(n_kv_heads: int) -> None:
    model = policy(n_kv_heads=n_kv_heads)
    tokens = torch.randint(3, 17, (3, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model.head(model.hidden(tokens))
        cache = Cache(model, torch.zeros(3, dtype=torch.long), 9)
        found = [cache.advance(tokens[:, :4]), *(cache.advance(tokens[:, i : i + 1]) for i in range(4, 9))]
    torch.testing.assert_close(torch.stack(found, 1), whole[:, 3:], rtol=1e-4, atol=1e-4)


def test_padding_on_the_left_changes_nothing() -> None:
    model = policy()
    with torch.no_grad():
        cache = Cache(model, torch.tensor([5 - len(p) for p in PROMPTS]), 8)
        found = cache.advance(torch.tensor([[0] * (5 - len(p)) + p for p in PROMPTS]))
        alone = [Cache(model, torch.zeros(1, dtype=torch.long), 8).advance(torch.tensor([p]))[0] for p in PROMPTS]
    torch.testing.assert_close(found, torch.stack(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_a_batch_that_shrinks_gives_the_answers_of_the_full_one(top_p: float) -> None:
    model, drawn = policy(), uniforms(60, 16, 7)
    prompts = PROMPTS * 10
    some = [
        generate(model, prompts, drawn, Sampling(max_tokens=16, end=END, top_p=top_p, drop_ended=dropping))
        for dropping in (True, False)
    ]
    assert some[0].answers() == some[1].answers()
    lengths = some[0].lengths
    assert lengths.min() < lengths.max()  # else nothing was dropped early
    for answer in some[0].answers():
        assert END not in answer[:-1]
        assert answer[-1] == END or len(answer) == 16


def test_the_batch_really_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    advance = Cache.advance

    def watched(self: Cache, tokens: Any) -> Any:
        rows.append(len(tokens))
        return advance(self, tokens)

    monkeypatch.setattr(Cache, "advance", watched)
    lengths = torch.tensor([1, 2, 3, 4, 8, 12])
    generate(policy(), PROMPTS, uniforms(6, 16, 1), Sampling(max_tokens=16, end=END), lengths)
    assert rows[0] == 6
    assert rows[-1] == 1
    assert len(rows) == 12  # the first gives the first token's logits, and none follows the longest answer


def test_answers_have_the_lengths_that_they_are_given() -> None:
    lengths = torch.tensor([4, 1, 7, 3, 9, 2])
    found = generate(policy(), PROMPTS, uniforms(6, 9, 1), Sampling(max_tokens=9, end=END), lengths)
    assert found.lengths.tolist() == lengths.tolist()
    assert [len(answer) for answer in found.answers()] == lengths.tolist()


def test_log_probabilities_are_those_that_tokens_were_drawn_with() -> None:
    model, temperature = policy(), 0.8
    found = generate(model, PROMPTS, uniforms(6, 10, 3), Sampling(max_tokens=10, end=END, temperature=temperature))
    with torch.no_grad():
        together = log_probs(model, found, temperature)
        alone = []
        for prompt, answer in zip(PROMPTS, found.answers(), strict=True):
            logits = model.head(model.hidden(torch.tensor([[*prompt, *answer]])))[0]
            rows = torch.log_softmax(logits / temperature, -1)
            alone += [rows[len(prompt) - 1 + i, token] for i, token in enumerate(answer)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-4)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.0, 0.3, 0.2]])).expand(20_000, 4)
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(1))
    counts = torch.bincount(draw(logits, uniform, Sampling(max_tokens=1, end=0)), minlength=4) / 20_000
    torch.testing.assert_close(counts, torch.tensor([0.5, 0.0, 0.3, 0.2]), atol=0.012, rtol=0)
    top = torch.bincount(draw(logits, uniform, Sampling(max_tokens=1, end=0, top_p=0.6)), minlength=4) / 20_000
    torch.testing.assert_close(top, torch.tensor([0.625, 0.0, 0.375, 0.0]), atol=0.012, rtol=0)


def test_the_ends_of_the_uniform_numbers_draw_tokens_that_are_possible() -> None:
    logits = torch.log(torch.tensor([[0.0, 0.6, 0.4, 0.0]]))
    for uniform, wanted in ((0.0, 1), (1.0 - 2**-24, 2)):
        for top_p in (1.0, 0.99):
            drawn = draw(logits, torch.tensor([uniform]), Sampling(max_tokens=1, end=0, top_p=top_p))
            assert drawn.item() == wanted


def test_divergence_is_nothing_from_itself_and_never_negative() -> None:
    model, other = policy(1), policy(2)
    found = generate(model, PROMPTS, uniforms(6, 10, 3), Sampling(max_tokens=10, end=END))
    with torch.no_grad():
        assert divergences(model, model, found).max() == 0
        apart = divergences(model, other, found)
        logits = answer_logits(model, found)
    assert apart.min() >= 0
    assert apart.mean() > 0.1
    assert logits.shape == (int(found.lengths.sum()), 17)
