"""Generation: rules that hold for any model, and beam search against exhaustive search and Hugging Face's."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.decoding import filtered_distribution, generate
from helpers.model import Decoder, ModelConfig
from helpers.tokenizer import WordTokenizer

TOKENIZER = WordTokenizer([f"w{i}" for i in range(16)])
SIZES = ModelConfig(vocab_size=24, embedding_dim=12, d_model=16, num_layers=2, num_heads=2, d_ff=32, context_length=12)


def made_model(seed=0, bias=None):
    torch.manual_seed(seed)
    model = Decoder(SIZES).eval()
    for token, value in (bias or {}).items():
        model.output.bias.data[token] = value
    return model


def test_greedy_takes_the_likeliest_word_each_time():
    model = made_model(bias={2: -50})
    (result,) = generate(model, TOKENIZER, ["w1 w2"], max_new_tokens=6, strategy="greedy")
    ids, logprob = [1, 5, 6], 0.0
    for token in result.ids:
        logits = model(torch.tensor([ids]))[0, -1]
        allowed = logits[4:20]
        assert token == int(allowed.argmax()) + 4
        logprob += logits.log_softmax(-1)[token].item()
        ids.append(token)
    assert len(result.ids) == 6
    assert result.logprob == pytest.approx(logprob, abs=1e-5)
    assert result.text == TOKENIZER.decode(result.ids)


def test_control_tokens_and_rows_without_a_word_never_come_out():
    model = made_model(bias={0: 50, 1: 50, 3: 50, 21: 50, 2: -50})
    for strategy in ("greedy", "sample"):
        for result in generate(model, TOKENIZER, [""] * 5, max_new_tokens=11, strategy=strategy, seed=0):
            assert all(4 <= token < 20 for token in result.ids)


def test_the_end_of_a_story_ends_it():
    (result,) = generate(made_model(bias={2: 50}), TOKENIZER, ["w1"], max_new_tokens=9, strategy="greedy")
    assert result.ids == [2]
    assert result.text == ""


def test_the_context_ends_it_too():
    (result,) = generate(made_model(bias={2: -50}), TOKENIZER, ["w1 w2"], max_new_tokens=100, strategy="greedy")
    assert len(result.ids) == 12 - 3


def test_the_same_seed_gives_the_same_text_whoever_the_neighbours_are():
    model = made_model(bias={2: -50})
    alone = generate(model, TOKENIZER, ["w1"], max_new_tokens=8, seed=3)
    together = generate(model, TOKENIZER, ["w1", "w2", "w1"], max_new_tokens=8, seed=3)
    assert together[0].ids == alone[0].ids
    assert together[0].logprob == pytest.approx(alone[0].logprob, abs=1e-5)
    assert together[2].ids != together[0].ids  # the same prompt twice, two stories
    assert generate(model, TOKENIZER, ["w1"], max_new_tokens=8, seed=4) != alone


def test_sampling_follows_the_distribution():
    """χ² against the model's own probabilities: 15 degrees of freedom, 4,000 draws, p = 0.001 at 37.7."""
    model = made_model(bias={2: -50})
    draws = generate(model, TOKENIZER, ["w1"] * 4000, max_new_tokens=1, seed=0)
    counts = torch.bincount(torch.tensor([draw.ids[0] for draw in draws]), minlength=24)[4:20].double()
    expected = 4000 * model(torch.tensor([[1, 5]]))[0, -1, 4:20].double().softmax(-1)
    assert ((counts - expected).square() / expected).sum() < 37.7


def test_filters_by_hand():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    assert filtered_distribution(logits).tolist() == pytest.approx([0.1, 0.4, 0.2, 0.3])
    assert filtered_distribution(logits, top_k=2).tolist() == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert filtered_distribution(logits, top_p=0.75).tolist() == pytest.approx([0, 4 / 9, 2 / 9, 3 / 9])
    assert filtered_distribution(logits, top_p=0.01).tolist() == pytest.approx([0, 1, 0, 0])
    assert filtered_distribution(logits, top_k=99, top_p=1.0).tolist() == pytest.approx([0.1, 0.4, 0.2, 0.3])
    squared = [0.01, 0.16, 0.04, 0.09]
    assert filtered_distribution(logits, temperature=0.5).tolist() == pytest.approx([p / 0.3 for p in squared])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "best"}, "choose 'sample', 'greedy' or 'beam'"),
        ({"temperature": 0.0}, "use strategy='greedy'"),
        ({"temperature": -1.0}, "must be above 0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, "top_p above 0"),
        ({"temperature": float("nan")}, "must be above 0"),
        ({"max_new_tokens": -1}, "must not be negative"),
        ({"num_beams": 0, "strategy": "beam"}, "at least 1"),
        ({"num_beams": 4}, "more for 'beam' only"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        generate(made_model(), TOKENIZER, ["w1"], **({"max_new_tokens": 3} | settings))


def test_a_prompt_that_fills_the_context_is_refused():
    with pytest.raises(ValueError, match="prompt 1 has 12 tokens with <sos> and leaves no room in a context of 12"):
        generate(made_model(), TOKENIZER, ["w1", "w1 " * 11], max_new_tokens=3)


# --- With the cache, without it, alone, together ---------------------------------------------------------------------

STRATEGIES = (
    {"strategy": "greedy"},
    {"strategy": "sample", "seed": 3, "temperature": 1.5},
    {"strategy": "sample", "seed": 3, "top_k": 7, "top_p": 0.9},
    {"strategy": "beam", "num_beams": 4},
)
UNEQUAL = ["", "w1 w2 w3", "w4 unknown w5 w6 w7 w8 w9", "w1 " * 10]


@pytest.mark.parametrize("how", STRATEGIES, ids=str)
def test_the_cache_changes_nothing_but_the_time(how):
    model = made_model(seed=1).double()
    with_cache = generate(model, TOKENIZER, UNEQUAL, max_new_tokens=9, **how)
    without = generate(model, TOKENIZER, UNEQUAL, max_new_tokens=9, use_cache=False, **how)
    assert [one.ids for one in with_cache] == [one.ids for one in without]
    assert [one.logprob for one in with_cache] == pytest.approx([one.logprob for one in without], abs=1e-12)
    assert len({len(one.ids) for one in with_cache}) > 1  # rows end at different steps


@pytest.mark.parametrize("how", [STRATEGIES[0], STRATEGIES[3]], ids=str)
def test_unequal_prompts_in_one_batch_go_on_as_they_do_alone(how):
    model = made_model(seed=1).double()
    together = generate(model, TOKENIZER, UNEQUAL, max_new_tokens=9, **how)
    alone = [generate(model, TOKENIZER, [prompt], max_new_tokens=9, **how)[0] for prompt in UNEQUAL]
    assert [[beam.ids for beam in one.beams] for one in together] == [[beam.ids for beam in one.beams] for one in alone]
    assert [one.ids for one in together] == [one.ids for one in alone]
    assert [one.logprob for one in together] == pytest.approx([one.logprob for one in alone], abs=1e-12)


def test_more_prompts_than_are_read_at_once(monkeypatch):
    model, prompts = made_model(seed=1).double(), [f"w{i}" for i in range(10)]
    whole = generate(model, TOKENIZER, prompts, max_new_tokens=5, seed=0)
    monkeypatch.setattr("helpers.decoding.ROWS", 3)
    assert [one.ids for one in generate(model, TOKENIZER, prompts, max_new_tokens=5, seed=0)] == [
        one.ids for one in whole
    ]


def test_nothing_to_do():
    model = made_model()
    assert generate(model, TOKENIZER, [], max_new_tokens=5) == []
    for how in STRATEGIES:
        (nothing,) = generate(model, TOKENIZER, ["w1"], max_new_tokens=0, **how)
        assert (nothing.text, nothing.ids, nothing.logprob) == ("", [], 0.0)


# --- Beam search -----------------------------------------------------------------------------------------------------


@cache
def sharp_model(words, seed):
    """A small float64 model of a few words whose distributions are far from even, and its tokenizer."""
    torch.manual_seed(seed)
    tokenizer = WordTokenizer([f"w{i}" for i in range(words)])
    sizes = {"embedding_dim": 12, "d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32, "context_length": 12}
    model = Decoder(ModelConfig(vocab_size=len(tokenizer), **sizes)).eval().double()
    with torch.no_grad():
        model.output.weight *= 4
    return model, tokenizer


@torch.no_grad()
def every_continuation(model, tokenizer, prompt, length, length_penalty):
    """(score, ids) of all continuations that end in <eos> or at `length`, best first."""
    found, start = [], [tokenizer.sos_id, *tokenizer.encode(prompt)]

    def extend(ids, logprob):
        if ids and (ids[-1] == tokenizer.eos_id or len(ids) == length):
            found.append((logprob / len(ids) ** length_penalty, ids))
            return
        scores = model(torch.tensor([start + ids]))[0, -1].log_softmax(-1).tolist()
        for token in (tokenizer.eos_id, *range(4, len(tokenizer))):
            extend([*ids, token], logprob + scores[token])

    extend([], 0.0)
    return sorted(found, reverse=True)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    words=st.integers(1, 4),
    seed=st.integers(0, 3),
    length=st.integers(1, 4),
    length_penalty=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]),
    prompt=st.lists(st.integers(0, 3), max_size=5),
)
def test_the_widest_beam_is_exhaustive_search(words, seed, length, length_penalty, prompt):
    model, tokenizer = sharp_model(words, seed)
    prompt = " ".join(f"w{i % words}" for i in prompt)
    expected = every_continuation(model, tokenizer, prompt, length, length_penalty)
    how = {"num_beams": len(expected), "length_penalty": length_penalty, "max_new_tokens": length}
    (result,) = generate(model, tokenizer, [prompt], strategy="beam", **how)
    assert [beam.ids for beam in result.beams] == [ids for _, ids in expected]
    assert [beam.score for beam in result.beams] == pytest.approx([score for score, _ in expected], abs=1e-9)
    assert result.ids == expected[0][1]


def test_one_beam_is_greedy():
    model = made_model(seed=1).double()
    greedy = generate(model, TOKENIZER, UNEQUAL, max_new_tokens=9, strategy="greedy")
    one = generate(model, TOKENIZER, UNEQUAL, max_new_tokens=9, strategy="beam", num_beams=1)
    assert [a.ids for a in one] == [a.ids for a in greedy]
    assert [len(a.beams) for a in one] == [1] * len(UNEQUAL)
