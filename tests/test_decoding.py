"""Generation: rules that hold for any model, and beam search against exhaustive search and Hugging
Face's.
"""

import math
import random
import re
from contextlib import nullcontext
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import TOKENIZER, made_model
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from helpers.checkpoints import CHECKPOINTS, load_checkpoint
from helpers.decoding import filtered_distribution, generate, in_place
from helpers.kv_cache import KVCache
from helpers.model import Decoder
from helpers.support.hardware import packed_weights, packing_pays
from helpers.tokenizer import WordTokenizer


def leaning_model(bias=None, seed=0, **changes):
    """A small model; `bias` makes single tokens likelier or less likely."""
    model = made_model(seed, **changes).eval()
    for token, value in (bias or {}).items():
        model.output.bias.data[token] = value
    return model


def ids_of(generations):
    return [one.ids for one in generations]


def logprobs_of(generations):
    return [one.logprob for one in generations]


def test_greedy_takes_the_likeliest_word_each_time():
    model = leaning_model({2: -50})
    (result,) = generate(model, TOKENIZER, ["w1 w2"], max_new_tokens=6, strategy="greedy")
    ids, logprob = [1, 5, 6], 0.0
    for token in result.ids:
        logits = model(torch.tensor([ids]))[0, -1]
        allowed = logits[4:34]
        assert token == int(allowed.argmax()) + 4
        logprob += logits.log_softmax(-1)[token].item()
        ids.append(token)
    assert len(result.ids) == 6
    assert result.logprob == pytest.approx(logprob, abs=1e-5)
    assert result.text == TOKENIZER.decode(result.ids, after=[1, 5, 6])


def test_control_tokens_and_rows_without_a_word_never_come_out():
    model = leaning_model({0: 50, 1: 50, 3: 50, 35: 50, 2: -50})
    for strategy in ("greedy", "sample"):
        how = {"max_new_tokens": 11, "strategy": strategy, "seed": 0}
        for result in generate(model, TOKENIZER, [""] * 5, **how):
            assert all(4 <= token < 34 for token in result.ids)


def test_the_end_of_a_story_ends_it():
    how = {"max_new_tokens": 9, "strategy": "greedy"}
    (result,) = generate(leaning_model({2: 50}), TOKENIZER, ["w1"], **how)
    assert result.ids == [2]
    assert result.text == ""


def test_the_context_ends_it_too():
    how = {"max_new_tokens": 100, "strategy": "greedy"}
    (result,) = generate(leaning_model({2: -50}), TOKENIZER, ["w1 w2"], **how)
    assert len(result.ids) == 12 - 3


def test_the_same_seed_gives_the_same_text_whoever_the_neighbours_are():
    model = leaning_model({2: -50})
    alone = generate(model, TOKENIZER, ["w1"], max_new_tokens=8, seed=3)
    together = generate(model, TOKENIZER, ["w1", "w2", "w1"], max_new_tokens=8, seed=3)
    assert together[0].ids == alone[0].ids
    assert together[0].logprob == pytest.approx(alone[0].logprob, abs=1e-5)
    assert together[2].ids != together[0].ids  # the same prompt twice, two stories
    assert generate(model, TOKENIZER, ["w1"], max_new_tokens=8, seed=4) != alone


FILTERS = (
    {},
    {"temperature": 0.7},
    {"temperature": 1.5, "top_k": 10},
    {"top_p": 0.8},
    {"top_k": 9, "top_p": 0.9},
)


@pytest.mark.parametrize("how", FILTERS, ids=str)
def test_sampling_follows_the_filtered_distribution(how):
    """χ² of 4,000 draws; what the filters left out never comes."""
    model = leaning_model({2: -50})
    draws = generate(model, TOKENIZER, ["w1"] * 4000, max_new_tokens=1, seed=0, **how)
    counts = torch.bincount(torch.tensor([draw.ids[0] for draw in draws]), minlength=40).double()
    logits = model(torch.tensor([[1, 5]]))[0, -1].double()
    logits[[0, 1, 3, *range(34, 40)]] = float("-inf")
    expected = 4000 * filtered_distribution(logits, **how)
    common = expected >= 5
    assert counts[expected == 0].sum() == 0
    statistic = ((counts - expected).square() / expected)[common].sum().item()
    degrees = int(common.sum()) - 1
    assert degrees >= 5
    # above the 99.9 % point of χ² for 5 to 30 degrees
    assert statistic < degrees + 3.09 * (2 * degrees) ** 0.5 + 6


def test_filters_by_hand():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()

    def check(expected, **filters):
        assert filtered_distribution(logits, **filters).tolist() == pytest.approx(expected)

    check([0.1, 0.4, 0.2, 0.3])
    check([0, 4 / 7, 0, 3 / 7], top_k=2)
    check([0, 4 / 9, 2 / 9, 3 / 9], top_p=0.75)
    check([0, 1, 0, 0], top_p=0.01)
    check([0.1, 0.4, 0.2, 0.3], top_k=99, top_p=1.0)
    check([square / 0.3 for square in (0.01, 0.16, 0.04, 0.09)], temperature=0.5)


WHOLE, ONE = "must be a whole number", "must be a whole number of at least 1"
POSITIVE = "must be finite and above 0; for the likeliest token use strategy='greedy'"
PART = "must be above 0 and at most 1, or None"
POWER = "must be between -50 and 50: it is the power of a length"
BEAM = {"strategy": "beam"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "best"}, "strategy='best': must be 'sample', 'greedy' or 'beam'"),
        ({"temperature": 0.0}, f"temperature=0.0: {POSITIVE}"),
        ({"temperature": -1.0}, f"temperature=-1.0: {POSITIVE}"),
        ({"temperature": float("inf")}, f"temperature=inf: {POSITIVE}"),
        ({"temperature": float("nan")}, f"temperature=nan: {POSITIVE}"),
        ({"top_k": 0}, f"top_k=0: {ONE}, or None"),
        ({"top_k": float("nan")}, f"top_k=nan: {ONE}, or None"),
        ({"top_p": 0.0}, f"top_p=0.0: {PART}"),
        ({"top_p": float("nan")}, f"top_p=nan: {PART}"),
        ({"prompts": "w1"}, "prompts='w1': must be a list of strings"),
        ({"prompts": ["w1", None]}, "prompts=['w1', None]: must be a list of strings"),
        ({"max_new_tokens": -1}, f"max_new_tokens=-1: {WHOLE}, 0 or more"),
        ({"max_new_tokens": 2.5}, f"max_new_tokens=2.5: {WHOLE}, 0 or more"),
        ({"max_new_tokens": None}, f"max_new_tokens=None: {WHOLE}, 0 or more"),
        ({"num_beams": 0} | BEAM, f"num_beams=0: {ONE}"),
        ({"num_beams": float("inf")} | BEAM, f"num_beams=inf: {ONE}"),
        ({"num_beams": 4}, "num_beams must be 1, unless strategy='beam'"),
        ({"seed": "a"}, f"seed='a': {WHOLE}, or None"),
        ({"length_penalty": float("nan")} | BEAM, f"length_penalty=nan: {POWER}"),
        ({"length_penalty": -1_000.0} | BEAM, f"length_penalty=-1000.0: {POWER}"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    how = {"prompts": ["w1"], "max_new_tokens": 3} | settings
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        generate(leaning_model(), TOKENIZER, **how)


def test_a_prompt_that_fills_the_context_is_refused():
    message = r"^prompt 1 has 12 tokens with <sos> and leaves no room in a context of 12: shorten"
    with pytest.raises(ValueError, match=message):
        generate(leaning_model(), TOKENIZER, ["w1", "w1 " * 11], max_new_tokens=3)


# --- With the cache, without it, alone, together --------------------------------------------------

STRATEGIES = (
    {"strategy": "greedy"},
    {"strategy": "sample", "seed": 3, "temperature": 1.5},
    {"strategy": "sample", "seed": 3, "top_k": 7, "top_p": 0.9},
    {"strategy": "beam", "num_beams": 4},
)
every_strategy = pytest.mark.parametrize("how", STRATEGIES, ids=str)
UNEQUAL = ["", "w1 w2 w3", "w4 unknown w5 w6 w7 w8 w9", "w1 " * 10]


@every_strategy
def test_the_cache_changes_nothing_but_the_time(how):
    model, how = leaning_model(seed=1).double(), how | {"max_new_tokens": 9}
    with_cache = generate(model, TOKENIZER, UNEQUAL, **how)
    without = generate(model, TOKENIZER, UNEQUAL, use_cache=False, **how)
    assert ids_of(with_cache) == ids_of(without)
    assert logprobs_of(with_cache) == pytest.approx(logprobs_of(without), abs=1e-12)
    assert len({len(ids) for ids in ids_of(with_cache)}) > 1  # rows end at different steps


@every_strategy
def test_unequal_prompts_in_one_batch_go_on_as_they_do_with_others(how):
    """Each prompt at its place in the list, which is all that its random stream depends on, after
    equal short ones.
    """
    model = leaning_model(seed=1).double()
    together = generate(model, TOKENIZER, UNEQUAL, max_new_tokens=9, **how)
    for place, prompt in enumerate(UNEQUAL):
        alone = generate(model, TOKENIZER, ["w5"] * place + [prompt], max_new_tokens=9, **how)[-1]
        assert alone.ids == together[place].ids
        assert ids_of(alone.beams) == ids_of(together[place].beams)
        assert alone.logprob == pytest.approx(together[place].logprob, abs=1e-12)


def test_more_prompts_than_are_read_at_once(monkeypatch):
    model, prompts = leaning_model(seed=1).double(), [f"w{i}" for i in range(10)]
    whole = generate(model, TOKENIZER, prompts, max_new_tokens=5, seed=0)
    monkeypatch.setattr("helpers.decoding.ROWS", 3)
    in_groups = generate(model, TOKENIZER, prompts, max_new_tokens=5, seed=0)
    assert ids_of(in_groups) == ids_of(whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_packed_weights_give_the_same_logits_and_are_gone_afterwards(dtype):
    model, ids = leaning_model().to(dtype), torch.randint(4, 34, (3, 7))
    with torch.no_grad():
        before = model(ids)
        with packed_weights(model):
            packed = model(ids)
        torch.testing.assert_close(packed, before)
        model.output.weight.mul_(2)
        assert not torch.equal(model(ids), before)  # the copy is no longer used
    model(ids).sum().backward()
    assert model.output.weight.grad is not None


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN here")
def test_only_layers_that_are_not_slower_so_are_packed_for_so_many_rows(monkeypatch):
    """Each size is tried once for a number of rows."""
    model, tried = leaning_model(), []

    def repeat(product, number, repeat):
        case = (*product.args[0].shape, product().shape[1])
        tried.append(case)
        # Plain, then packed: only the output layer is not slower.
        return [9.0, 3.0 if tried.count(case) == 2 and case[-1] != 40 else 2.0]

    packing_pays.cache_clear()
    monkeypatch.setattr("timeit.repeat", repeat)
    for rows in (5, 5, 9):
        with packed_weights(model, rows):
            packed = [name for name, module in model.named_modules() if "forward" in vars(module)]
        assert packed == ["output"]
    assert {case[0] for case in tried} == {5, 9}
    assert max(map(tried.count, tried)) == 2
    packing_pays.cache_clear()


@pytest.mark.parametrize(
    ("prompts", "how", "rows"),
    [
        (3, {"strategy": "greedy"}, 3),
        (3, {"strategy": "beam", "num_beams": 2}, 6),
        (3, {"strategy": "beam", "num_beams": 200}, 256),
    ],
)
def test_weights_are_packed_for_the_rows_of_a_step(monkeypatch, prompts, how, rows):
    asked = []

    def packed(model, rows):
        asked.append(rows)
        return nullcontext()

    monkeypatch.setattr("helpers.decoding.packed_weights", packed)
    generate(leaning_model(), TOKENIZER, ["w1"] * prompts, max_new_tokens=1, **how)
    assert asked == [rows]


def test_weights_are_unpacked_after_an_error_too():
    model = leaning_model()
    with pytest.raises(ZeroDivisionError), packed_weights(model):
        raise ZeroDivisionError
    assert not any("forward" in vars(module) for module in model.modules())


def test_beams_stay_in_the_row_that_they_go_on_from():
    def running(*rows):
        return [([], 0.0, row) for row in rows]

    assert in_place(running(2, 0, 0, 1)) == running(0, 1, 2, 0)
    assert in_place(running(3, 3, 3, 3)) == running(3, 3, 3, 3)
    assert in_place(running(5, 1)) == running(5, 1)  # two beams are left of six


@every_strategy
def test_scores_that_are_not_numbers_are_said_and_leave_the_model_as_it_was(how):
    model = leaning_model().train()
    with torch.no_grad():
        model.blocks[1].attention.output.bias[3] = float("nan")
    with pytest.raises(FloatingPointError, match="load a checkpoint whose weights are finite"):
        generate(model, TOKENIZER, ["w1", "w2 w3"], max_new_tokens=4, **how)
    assert model.training
    assert "forward" not in vars(model.output)


def interrupt(*_):
    raise KeyboardInterrupt


@every_strategy
@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_restored_after_an_error_in_the_model(training, how):
    model = made_model(dropout=0.5).train(training)
    seen = []
    model.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    broken = model.blocks[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate(model, TOKENIZER, ["w1", "w2 w3"], max_new_tokens=4, **how)
    assert seen == [False]
    assert [module.training for module in model.modules()] == [training] * len([*model.modules()])
    assert not any("forward" in vars(module) for module in model.modules())
    broken.remove()
    generate(model, TOKENIZER, ["w1", "w2 w3"], max_new_tokens=4, **how)
    assert not any(seen)
    assert model.training == training


SMALLEST = [{"temperature": t} for t in (1e-9, 1e-40, 5e-324)] + [{"top_p": 1e-46}]


@pytest.mark.parametrize("how", [*SMALLEST, {"top_p": 5e-324}])
def test_the_smallest_temperatures_and_sets_are_greedy(how):
    model, prompts = leaning_model(), ["w1", "w2 w3", ""]
    cold = generate(model, TOKENIZER, prompts, max_new_tokens=6, seed=0, **how)
    greedy = generate(model, TOKENIZER, prompts, max_new_tokens=6, strategy="greedy")
    assert ids_of(cold) == ids_of(greedy)


@pytest.mark.parametrize("temperature", [1e30, 3.5e38, 1e308])
def test_the_largest_temperatures_draw_each_word_alike(temperature):
    logits = torch.tensor([3.0, 0.0, -50.0, float("-inf")])  # (V,), the last may not come out
    found = filtered_distribution(logits, temperature).tolist()
    assert found == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    how = {"max_new_tokens": 3, "temperature": temperature, "seed": 0}
    generate(leaning_model(), TOKENIZER, ["w1"], **how)


@pytest.mark.parametrize("length_penalty", [-50, 50.0])
def test_the_largest_length_penalties_give_numbers(length_penalty):
    how = {"max_new_tokens": 10, "num_beams": 3, "length_penalty": length_penalty} | BEAM
    (result,) = generate(leaning_model(), TOKENIZER, ["w1"], **how)
    assert all(math.isfinite(beam.score) for beam in result.beams)


def test_another_models_tokenizer_is_refused():
    many = WordTokenizer([f"w{i}" for i in range(500)])
    message = r"^the vocabulary of 504 is larger than the model's table of 40: train the tokenizer"
    with pytest.raises(ValueError, match=message):
        generate(leaning_model(), many, ["w400"], max_new_tokens=3)


def test_a_tokenizer_of_the_same_size_but_other_words_is_refused():
    """Its ids would fit, and write nonsense. A model that was built by hand takes any."""
    model, other = made_model(), WordTokenizer(TOKENIZER.words[::-1])
    generate(model, other, ["w1"], max_new_tokens=1)
    model.tokenizer_digest = TOKENIZER.digest
    generate(model, WordTokenizer(TOKENIZER.words), ["w1"], max_new_tokens=1)
    with pytest.raises(ValueError, match=r"the tokenizer is another model's: take the one"):
        generate(model, other, ["w1"], max_new_tokens=1)


def test_prompts_may_come_from_an_iterator():
    how = {"max_new_tokens": 3, "strategy": "greedy"}
    expected = generate(made_model(), TOKENIZER, ["w1", "w2"], **how)
    assert generate(made_model(), TOKENIZER, (f"w{i}" for i in (1, 2)), **how) == expected


def test_under_autocast_it_writes_what_the_model_writes_there():
    model = made_model().eval()
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = generate(model, TOKENIZER, ["w1"], max_new_tokens=6, strategy="greedy")
        ids = [TOKENIZER.sos_id, *TOKENIZER.encode("w1")]
        with torch.inference_mode():
            for token in found.ids:
                logits = model(torch.tensor([ids]))[0, -1]  # (V,)
                logits[TOKENIZER.excluded_ids(40)] = -math.inf
                assert logits[token] > logits.max() - 0.05  # bfloat16 has ties
                ids.append(token)


def test_more_than_the_vocabulary_can_give():
    model, one = leaning_model(), {"max_new_tokens": 1, "num_beams": 10**3} | BEAM
    two = lambda **how: generate(model, TOKENIZER, ["w1"], max_new_tokens=2, seed=3, **how)
    assert ids_of(two(top_k=10**6)) == ids_of(two())
    (widest,) = generate(model, TOKENIZER, ["w1"], **one)
    assert len(widest.beams) == len(TOKENIZER) - 3  # each word and <eos>
    assert math.fsum(math.exp(beam.logprob) for beam in widest.beams) < 1


def test_a_thousand_prompts_go_on_as_they_do_alone():
    model, prompts = leaning_model(), [f"w{i % 40} w{i // 40 % 40}" for i in range(1_000)]
    many = generate(model, TOKENIZER, prompts, max_new_tokens=3, strategy="greedy")
    assert len(many) == 1_000
    alone = generate(model, TOKENIZER, prompts[777:778], max_new_tokens=3, strategy="greedy")
    assert many[777].ids == alone[0].ids


def test_nothing_to_do():
    model = leaning_model()
    assert generate(model, TOKENIZER, [], max_new_tokens=5) == []
    for how in STRATEGIES:
        (nothing,) = generate(model, TOKENIZER, ["w1"], max_new_tokens=0, **how)
        assert (nothing.text, nothing.ids, nothing.logprob) == ("", [], 0.0)


@pytest.mark.slow
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
    some_words = lambda: " ".join(chance.choices(tokenizer.words, k=chance.randint(0, 20)))
    prompts, how = [some_words() for _ in range(200)], {"max_new_tokens": 16, "strategy": "greedy"}
    with_cache = generate(model, tokenizer, prompts, **how)
    without = generate(model, tokenizer, prompts, use_cache=False, **how)
    assert ids_of(with_cache) == ids_of(without)
    words = range(4, len(tokenizer))
    ids = torch.tensor([[tokenizer.sos_id, *chance.choices(words, k=40)] for _ in range(8)])
    cache = KVCache(model.config, len(ids))
    with torch.inference_mode():
        whole = model(ids)  # (B, T, V)
        pieces = [model(piece, cache) for piece in ids.split([10] + [1] * 31, dim=1)]
    assert (torch.cat(pieces, dim=1) - whole).abs().max() < 1e-5 * whole.abs().max()


# --- Beam search ----------------------------------------------------------------------------------


@cache
def sharp_model(words, seed):
    """A small float64 model of a few words whose distributions are far from even, and its
    tokenizer.
    """
    tokenizer = WordTokenizer([f"w{i}" for i in range(words)])
    sizes = {"vocab_size": len(tokenizer), "context_length": 16}
    model = leaning_model(seed=seed, **sizes).double()
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
    assert ids_of(result.beams) == [ids for _, ids in expected]
    scores = [beam.score for beam in result.beams]
    assert scores == pytest.approx([score for score, _ in expected], abs=1e-9)
    assert result.ids == expected[0][1]


def test_one_beam_is_greedy():
    model = leaning_model(seed=1).double()
    greedy = generate(model, TOKENIZER, UNEQUAL, max_new_tokens=9, strategy="greedy")
    one = generate(model, TOKENIZER, UNEQUAL, max_new_tokens=9, strategy="beam", num_beams=1)
    assert ids_of(one) == ids_of(greedy)
    assert [len(a.beams) for a in one] == [1] * len(UNEQUAL)


class Ours(PreTrainedModel, GenerationMixin):
    """Our model as Hugging Face's `generate` wants it: the same logits, their search."""

    config_class = PretrainedConfig

    def __init__(self, model):
        c = model.config
        sizes = {"num_hidden_layers": c.num_layers, "hidden_size": c.d_model}
        heads = {"num_attention_heads": c.num_heads}
        super().__init__(PretrainedConfig(vocab_size=c.vocab_size, **sizes, **heads))
        self.model = model

    def forward(self, input_ids, **_):
        return CausalLMOutput(logits=self.model(input_ids))

    def prepare_inputs_for_generation(self, input_ids, **_):
        return {"input_ids": input_ids}


THEIRS = {
    "do_sample": False,
    "early_stopping": "never",
    "eos_token_id": 2,
    "pad_token_id": 0,
    "use_cache": False,
    "bad_words_ids": [[0], [1], [3]],
    "output_scores": True,
    "return_dict_in_generate": True,
}


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(5))
def test_beam_search_finds_what_hugging_face_finds(hundred):
    """500 cases: 2 to 10 beams, up to 10 tokens, five length penalties; all beams, in order, with
    their scores.
    """
    for case in range(100 * hundred, 100 * hundred + 100):
        chance = random.Random(case)
        model, tokenizer = sharp_model(chance.choice([6, 12, 30]), case % 20)
        width, how = chance.randint(2, 10), {"max_new_tokens": chance.randint(1, 10)}
        how |= {"num_beams": width, "length_penalty": chance.choice([-1.0, 0.0, 0.5, 1.0, 2.0])}
        prompt = " ".join(chance.choices(tokenizer.words, k=chance.randint(0, 4)))
        start = torch.tensor([[tokenizer.sos_id, *tokenizer.encode(prompt)]])  # (1, S)
        theirs = Ours(model).generate(start, num_return_sequences=width, **how, **THEIRS)
        (ours,) = generate(model, tokenizer, [prompt], strategy="beam", **how)
        expected = []
        new = theirs.sequences[:, start.shape[1] :].tolist()
        for row, score in zip(new, theirs.sequences_scores.tolist(), strict=True):
            if score > -1e8:  # below: no such continuation, fewer exist than beams
                expected.append((row[: row.index(2) + 1] if 2 in row else row, score))
        assert ids_of(ours.beams) == [ids for ids, _ in expected], case
        scores = [beam.score for beam in ours.beams]
        assert scores == pytest.approx([score for _, score in expected], rel=1e-5), case
