"""Generation: rules that hold for any model, checked on small random ones."""

import pytest
import torch

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
    assert together[0] == alone[0]
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
        ({"strategy": "best"}, "choose 'sample' or 'greedy'"),
        ({"temperature": 0.0}, "use strategy='greedy'"),
        ({"temperature": -1.0}, "must be above 0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, "top_p above 0"),
        ({"max_new_tokens": -1}, "must not be negative"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        generate(made_model(), TOKENIZER, ["w1"], **({"max_new_tokens": 3} | settings))


def test_a_prompt_that_fills_the_context_is_refused():
    with pytest.raises(ValueError, match="prompt 1 has 12 tokens with <sos> and leaves no room in a context of 12"):
        generate(made_model(), TOKENIZER, ["w1", "w1 " * 11], max_new_tokens=3)
