"""Generation: rules that hold for any model, and beam search against exhaustive search and Hugging
Face's.
"""

import math
import random
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from helpers.decoding import _in_place, _top, filtered_distribution, generate, packed_weights
from helpers.model import Decoder, KVCache, ModelConfig
from helpers.tokenizer import WordTokenizer
from helpers.training import CHECKPOINTS, load_checkpoint

TOKENIZER = WordTokenizer([f"w{i}" for i in range(16)])
SIZES = ModelConfig(
    vocab_size=24,
    embedding_dim=12,
    d_model=16,
    num_layers=2,
    num_heads=2,
    d_ff=32,
    context_length=12,
)


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
    assert result.text == TOKENIZER.decode(result.ids, after=[1, 5, 6])


def test_control_tokens_and_rows_without_a_word_never_come_out():
    model = made_model(bias={0: 50, 1: 50, 3: 50, 21: 50, 2: -50})
    for strategy in ("greedy", "sample"):
        for result in generate(
            model, TOKENIZER, [""] * 5, max_new_tokens=11, strategy=strategy, seed=0
        ):
            assert all(4 <= token < 20 for token in result.ids)


def test_the_end_of_a_story_ends_it():
    (result,) = generate(
        made_model(bias={2: 50}), TOKENIZER, ["w1"], max_new_tokens=9, strategy="greedy"
    )
    assert result.ids == [2]
    assert result.text == ""


def test_the_context_ends_it_too():
    (result,) = generate(
        made_model(bias={2: -50}), TOKENIZER, ["w1 w2"], max_new_tokens=100, strategy="greedy"
    )
    assert len(result.ids) == 12 - 3


def test_the_same_seed_gives_the_same_text_whoever_the_neighbours_are():
    model = made_model(bias={2: -50})
    alone = generate(model, TOKENIZER, ["w1"], max_new_tokens=8, seed=3)
    together = generate(model, TOKENIZER, ["w1", "w2", "w1"], max_new_tokens=8, seed=3)
    assert together[0].ids == alone[0].ids
    assert together[0].logprob == pytest.approx(alone[0].logprob, abs=1e-5)
    assert together[2].ids != together[0].ids  # the same prompt twice, two stories
    assert generate(model, TOKENIZER, ["w1"], max_new_tokens=8, seed=4) != alone


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 1.5, "top_k": 10},
        {"top_p": 0.8},
        {"top_k": 9, "top_p": 0.9},
    ],
    ids=str,
)
def test_sampling_follows_the_filtered_distribution(how):
    """χ² of 4,000 draws; what the filters left out never comes."""
    model = made_model(bias={2: -50})
    draws = generate(model, TOKENIZER, ["w1"] * 4000, max_new_tokens=1, seed=0, **how)
    counts = torch.bincount(torch.tensor([draw.ids[0] for draw in draws]), minlength=24).double()
    logits = model(torch.tensor([[1, 5]]))[0, -1].double()
    logits[[0, 1, 3, 20, 21, 22, 23]] = float("-inf")
    expected = 4000 * filtered_distribution(logits, **how)
    common = expected >= 5
    assert counts[expected == 0].sum() == 0
    statistic = ((counts - expected).square() / expected)[common].sum().item()
    degrees = int(common.sum()) - 1
    assert degrees >= 5
    # above the 99.9 % point of χ² for 5 to 20 degrees
    assert statistic < degrees + 3.09 * (2 * degrees) ** 0.5 + 6


def test_filters_by_hand():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    assert filtered_distribution(logits).tolist() == pytest.approx([0.1, 0.4, 0.2, 0.3])
    assert filtered_distribution(logits, top_k=2).tolist() == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert filtered_distribution(logits, top_p=0.75).tolist() == pytest.approx(
        [0, 4 / 9, 2 / 9, 3 / 9]
    )
    assert filtered_distribution(logits, top_p=0.01).tolist() == pytest.approx([0, 1, 0, 0])
    assert filtered_distribution(logits, top_k=99, top_p=1.0).tolist() == pytest.approx(
        [0.1, 0.4, 0.2, 0.3]
    )
    squared = [0.01, 0.16, 0.04, 0.09]
    assert filtered_distribution(logits, temperature=0.5).tolist() == pytest.approx(
        [p / 0.3 for p in squared]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "best"}, "choose 'sample', 'greedy' or 'beam'"),
        ({"temperature": 0.0}, "use strategy='greedy'"),
        ({"temperature": -1.0}, "must be finite and above 0"),
        ({"temperature": float("inf")}, "must be finite and above 0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, "top_p above 0"),
        ({"top_p": float("nan")}, "top_p above 0"),
        ({"prompts": "w1"}, "give a list of prompts"),
        ({"temperature": float("nan")}, "must be finite and above 0"),
        ({"max_new_tokens": -1}, "must not be negative"),
        ({"num_beams": 0, "strategy": "beam"}, "at least 1"),
        ({"num_beams": 4}, "more for 'beam' only"),
        ({"max_new_tokens": 2.5}, r"max_new_tokens=2\.5 must be a whole number"),
        ({"max_new_tokens": None}, "max_new_tokens=None must be a whole number"),
        ({"top_k": float("nan")}, "top_k=nan must be a whole number"),
        ({"num_beams": float("inf"), "strategy": "beam"}, "num_beams=inf must be a whole number"),
        ({"seed": "a"}, "seed='a' must be a whole number"),
        ({"length_penalty": float("nan"), "strategy": "beam"}, "between -50 and 50"),
        ({"length_penalty": -1_000.0, "strategy": "beam"}, "between -50 and 50"),
        ({"prompts": ["w1", None]}, "prompt 1 is None: give strings"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        generate(made_model(), TOKENIZER, **({"prompts": ["w1"], "max_new_tokens": 3} | settings))


def test_a_prompt_that_fills_the_context_is_refused():
    with pytest.raises(
        ValueError, match="prompt 1 has 12 tokens with <sos> and leaves no room in a context of 12"
    ):
        generate(made_model(), TOKENIZER, ["w1", "w1 " * 11], max_new_tokens=3)


# --- With the cache, without it, alone, together --------------------------------------------------

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
    assert [one.logprob for one in with_cache] == pytest.approx(
        [one.logprob for one in without], abs=1e-12
    )
    assert len({len(one.ids) for one in with_cache}) > 1  # rows end at different steps


@pytest.mark.parametrize("how", STRATEGIES, ids=str)
def test_unequal_prompts_in_one_batch_go_on_as_they_do_with_others(how):
    """Each prompt at its place in the list, which is all that its random stream depends on, after
    equal short ones.
    """
    model = made_model(seed=1).double()
    together = generate(model, TOKENIZER, UNEQUAL, max_new_tokens=9, **how)
    for place, prompt in enumerate(UNEQUAL):
        alone = generate(model, TOKENIZER, ["w5"] * place + [prompt], max_new_tokens=9, **how)[-1]
        assert alone.ids == together[place].ids
        assert [beam.ids for beam in alone.beams] == [beam.ids for beam in together[place].beams]
        assert alone.logprob == pytest.approx(together[place].logprob, abs=1e-12)


def test_more_prompts_than_are_read_at_once(monkeypatch):
    model, prompts = made_model(seed=1).double(), [f"w{i}" for i in range(10)]
    whole = generate(model, TOKENIZER, prompts, max_new_tokens=5, seed=0)
    monkeypatch.setattr("helpers.decoding.ROWS", 3)
    assert [one.ids for one in generate(model, TOKENIZER, prompts, max_new_tokens=5, seed=0)] == [
        one.ids for one in whole
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_packed_weights_give_the_same_logits_and_are_gone_afterwards(dtype):
    model = made_model().to(dtype)
    ids = torch.randint(4, 20, (3, 7))
    with torch.no_grad():
        before = model(ids)
        with packed_weights(model):
            packed = model(ids)
        torch.testing.assert_close(packed, before)
        model.output.weight.mul_(2)
        assert not torch.equal(model(ids), before)  # the copy is no longer used
    model(ids).sum().backward()
    assert model.output.weight.grad is not None


def test_weights_are_unpacked_after_an_error_too():
    model = made_model()
    with pytest.raises(ZeroDivisionError), packed_weights(model):
        raise ZeroDivisionError
    assert not any("forward" in vars(module) for module in model.modules())


@settings(max_examples=200)
@given(st.integers(1, 700), st.integers(1, 30), st.integers(0, 99))
def test_the_largest_of_blocks_are_the_largest(count, k, seed):
    values = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).float()
    k = min(k, count)
    found, places = _top(values, k, block=10)
    assert found.tolist() == sorted(values.tolist(), reverse=True)[:k]
    assert torch.equal(values[places], found)


def test_the_largest_may_be_infinitely_small():
    values = torch.full((400,), float("-inf"))
    values[7] = 1.0
    found, places = _top(values, 3, block=10)
    assert found.tolist() == [1.0, float("-inf"), float("-inf")]
    assert places[0] == 7


def test_beams_stay_in_the_row_that_they_go_on_from():
    def running(*rows):
        return [([], 0.0, row) for row in rows]

    assert _in_place(running(2, 0, 0, 1)) == running(0, 1, 2, 0)
    assert _in_place(running(3, 3, 3, 3)) == running(3, 3, 3, 3)
    assert _in_place(running(5, 1)) == running(5, 1)  # two beams are left of six


@pytest.mark.parametrize("how", STRATEGIES, ids=str)
def test_scores_that_are_not_numbers_are_said_and_leave_the_model_as_it_was(how):
    model = made_model().train()
    with torch.no_grad():
        model.blocks[1].attention.output.bias[3] = float("nan")
    with pytest.raises(FloatingPointError, match="load a checkpoint whose weights are finite"):
        generate(model, TOKENIZER, ["w1", "w2 w3"], max_new_tokens=4, **how)
    assert model.training
    assert "forward" not in vars(model.output)


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 1e-9},
        {"temperature": 1e-40},
        {"temperature": 5e-324},
        {"top_p": 1e-46},
        {"top_p": 5e-324},
    ],
)
def test_the_smallest_temperatures_and_sets_are_greedy(how):
    model, prompts = made_model(), ["w1", "w2 w3", ""]
    cold = generate(model, TOKENIZER, prompts, max_new_tokens=6, seed=0, **how)
    greedy = generate(model, TOKENIZER, prompts, max_new_tokens=6, strategy="greedy")
    assert [one.ids for one in cold] == [one.ids for one in greedy]


@pytest.mark.parametrize("temperature", [1e30, 3.5e38, 1e308])
def test_the_largest_temperatures_draw_each_word_alike(temperature):
    logits = torch.tensor([3.0, 0.0, -50.0, float("-inf")])  # (V,), the last may not come out
    assert filtered_distribution(logits, temperature).tolist() == pytest.approx(
        [1 / 3, 1 / 3, 1 / 3, 0]
    )
    generate(made_model(), TOKENIZER, ["w1"], max_new_tokens=3, temperature=temperature, seed=0)


@pytest.mark.parametrize("length_penalty", [-50, 50.0])
def test_the_largest_length_penalties_give_numbers(length_penalty):
    how = {
        "max_new_tokens": 10,
        "strategy": "beam",
        "num_beams": 3,
        "length_penalty": length_penalty,
    }
    assert all(
        math.isfinite(beam.score)
        for beam in generate(made_model(), TOKENIZER, ["w1"], **how)[0].beams
    )


def test_another_models_tokenizer_is_refused():
    with pytest.raises(ValueError, match="is larger than the model's table of"):
        generate(
            made_model(), WordTokenizer([f"w{i}" for i in range(500)]), ["w400"], max_new_tokens=3
        )


def test_more_than_the_vocabulary_can_give():
    model = made_model()
    ids = lambda **how: [
        one.ids for one in generate(model, TOKENIZER, ["w1"], max_new_tokens=2, seed=3, **how)
    ]
    assert ids(top_k=10**6) == ids()
    (widest,) = generate(
        model, TOKENIZER, ["w1"], max_new_tokens=1, strategy="beam", num_beams=10**3
    )
    assert len(widest.beams) == len(TOKENIZER) - 3  # each word and <eos>
    assert math.fsum(math.exp(beam.logprob) for beam in widest.beams) < 1


def test_a_thousand_prompts_go_on_as_they_do_alone():
    model, prompts = made_model(), [f"w{i % 20} w{i // 20 % 20}" for i in range(1_000)]
    many = generate(model, TOKENIZER, prompts, max_new_tokens=3, strategy="greedy")
    assert len(many) == 1_000
    alone = generate(model, TOKENIZER, prompts[777:778], max_new_tokens=3, strategy="greedy")
    assert many[777].ids == alone[0].ids


def test_nothing_to_do():
    model = made_model()
    assert generate(model, TOKENIZER, [], max_new_tokens=5) == []
    for how in STRATEGIES:
        (nothing,) = generate(model, TOKENIZER, ["w1"], max_new_tokens=0, **how)
        assert (nothing.text, nothing.ids, nothing.logprob) == ("", [], 0.0)


@pytest.mark.parametrize("weights", ["random", "trained"])
def test_greedy_with_the_cache_is_greedy_without_it_for_200_prompts(weights):
    """Same tokens in fp32; and the logits of one pass and of token by token agree within 1e-5 of
    the largest.
    """
    model, tokenizer, _ = load_checkpoint(CHECKPOINTS / "bundled")
    if weights == "random":
        torch.manual_seed(0)
        model = Decoder(model.config).eval()
    chance = random.Random(0)
    prompts = [
        " ".join(chance.choices(tokenizer.words, k=chance.randint(0, 20))) for _ in range(200)
    ]
    found = [
        [
            one.ids
            for one in generate(
                model, tokenizer, prompts, max_new_tokens=16, strategy="greedy", use_cache=use_cache
            )
        ]
        for use_cache in (True, False)
    ]
    assert found[0] == found[1]
    ids = torch.tensor(
        [[tokenizer.sos_id, *chance.choices(range(4, len(tokenizer)), k=40)] for _ in range(8)]
    )  # (B, T)
    cache = KVCache(model.config, len(ids))
    with torch.inference_mode():
        whole = model(ids)  # (B, T, V)
        steps = torch.cat(
            [model(ids[:, :10], cache), *(model(ids[:, t : t + 1], cache) for t in range(10, 41))],
            dim=1,
        )
    assert (steps - whole).abs().max() < 1e-5 * whole.abs().max()


# --- Beam search ----------------------------------------------------------------------------------


@cache
def sharp_model(words, seed):
    """A small float64 model of a few words whose distributions are far from even, and its
    tokenizer.
    """
    torch.manual_seed(seed)
    tokenizer = WordTokenizer([f"w{i}" for i in range(words)])
    sizes = {
        "embedding_dim": 12,
        "d_model": 16,
        "num_layers": 2,
        "num_heads": 2,
        "d_ff": 32,
        "context_length": 16,
    }
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
    assert [beam.score for beam in result.beams] == pytest.approx(
        [score for score, _ in expected], abs=1e-9
    )
    assert result.ids == expected[0][1]


def test_one_beam_is_greedy():
    model = made_model(seed=1).double()
    greedy = generate(model, TOKENIZER, UNEQUAL, max_new_tokens=9, strategy="greedy")
    one = generate(model, TOKENIZER, UNEQUAL, max_new_tokens=9, strategy="beam", num_beams=1)
    assert [a.ids for a in one] == [a.ids for a in greedy]
    assert [len(a.beams) for a in one] == [1] * len(UNEQUAL)


class _Ours(PreTrainedModel, GenerationMixin):
    """Our model as Hugging Face's `generate` wants it: the same logits, their search."""

    config_class = PretrainedConfig

    def __init__(self, model):
        c = model.config
        sizes = {
            "num_hidden_layers": c.num_layers,
            "num_attention_heads": c.num_heads,
            "hidden_size": c.d_model,
        }
        super().__init__(PretrainedConfig(vocab_size=c.vocab_size, **sizes))
        self.model = model

    def forward(self, input_ids, **_):
        return CausalLMOutput(logits=self.model(input_ids))

    def prepare_inputs_for_generation(self, input_ids, **_):
        return {"input_ids": input_ids}


@pytest.mark.parametrize("hundred", range(5))
def test_beam_search_finds_what_hugging_face_finds(hundred):
    """500 cases: 2 to 10 beams, up to 10 tokens, five length penalties; all beams, in order, with
    their scores.
    """
    for case in range(100 * hundred, 100 * hundred + 100):
        chance = random.Random(case)
        model, tokenizer = sharp_model(chance.choice([6, 12, 30]), case % 20)
        width, length = chance.randint(2, 10), chance.randint(1, 10)
        penalty = chance.choice([-1.0, 0.0, 0.5, 1.0, 2.0])
        prompt = " ".join(chance.choices(tokenizer.words, k=chance.randint(0, 4)))
        start = [tokenizer.sos_id, *tokenizer.encode(prompt)]
        theirs = _Ours(model).generate(
            torch.tensor([start]),
            max_new_tokens=length,
            num_beams=width,
            num_return_sequences=width,
            do_sample=False,
            early_stopping="never",
            length_penalty=penalty,
            eos_token_id=2,
            pad_token_id=0,
            use_cache=False,
            bad_words_ids=[[0], [1], [3]],
            output_scores=True,
            return_dict_in_generate=True,
        )
        how = {"num_beams": width, "length_penalty": penalty, "max_new_tokens": length}
        (ours,) = generate(model, tokenizer, [prompt], strategy="beam", **how)
        expected = []
        new, scores = theirs.sequences[:, len(start) :].tolist(), theirs.sequences_scores.tolist()
        for row, score in zip(new, scores, strict=True):
            if score > -1e8:  # below: no such continuation, fewer exist than beams
                expected.append((row[: row.index(2) + 1] if 2 in row else row, score))
        assert [beam.ids for beam in ours.beams] == [ids for ids, _ in expected], case
        assert [beam.score for beam in ours.beams] == pytest.approx(
            [score for _, score in expected], rel=1e-5
        ), case
