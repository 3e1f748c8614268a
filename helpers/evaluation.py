"""Measures: perplexity, the landmarks of a loss curve, BLEU, and the 50-prompt protocol.

Shape comments name the sizes: N texts, M validation texts, T tokens, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from sacrebleu.metrics import BLEU
from torch import Tensor

from helpers.decoding import Generation, generate
from helpers.loss import mean_loss
from helpers.model import Decoder
from helpers.support.checks import require
from helpers.tokenizer import WordTokenizer
from helpers.training import encode_stories


def perplexity(model: Decoder, tokenizer: WordTokenizer, texts: Sequence[str]) -> float:
    """exp of the mean loss per token, in fp32.

    Each text counts up to the model's context_length, and its `<sos>` is not predicted.
    """
    model.check_tokenizer(tokenizer)
    return math.exp(
        mean_loss(
            model,
            encode_stories(tokenizer, texts, model.config.context_length),  # (N, T)
            tokenizer.pad_id,
            precision="fp32",
        )
    )


def landmarks(
    train_ids: Tensor, validation_ids: Tensor, vocab_size: int, pad_id: int = 0
) -> dict[str, float]:
    """Losses of three models that need no network: the landmarks of a loss curve.

    The uniform model finds every token equally likely, the unigram model goes by frequency, and
    the bigram model by frequency after the token before, smoothed towards the unigram. The weight
    of the smoothing is chosen on the last tenth of the training stories.

    Args:
        train_ids: (N, T), what the models are fitted on.
        validation_ids: (M, T), what their losses are measured on.

    Returns:
        {"uniform", "unigram", "bigram"} to nats per token.
    """
    fit, tune = train_ids[: -len(train_ids) // 10], train_ids[-len(train_ids) // 10 :]
    best = min(
        [0.3, 1, 3, 10, 30, 100],
        key=lambda weight: _ngram_losses(fit, tune, vocab_size, pad_id, weight)[1],
    )
    unigram, bigram = _ngram_losses(train_ids, validation_ids, vocab_size, pad_id, best)
    return {"uniform": math.log(vocab_size), "unigram": unigram, "bigram": bigram}


def _ngram_losses(
    train_ids: Tensor, test_ids: Tensor, vocab_size: int, pad_id: int, weight: float
) -> tuple[float, float]:
    """P(w | v) = (count(v, w) + weight · P(w)) / (count(v) + weight): a Dirichlet prior."""

    def pairs(ids):
        before, after = ids[:, :-1].flatten(), ids[:, 1:].flatten()  # (N·(T-1),) each
        real = after != pad_id  # (N·(T-1),)
        return before[real].long().numpy(), after[real].long().numpy()

    before, after = pairs(train_ids)
    counts = (
        np.bincount(after, minlength=vocab_size) + 1.0
    )  # (V,), one added: no word is impossible
    unigram = counts / counts.sum()  # (V,)
    context = np.bincount(before, minlength=vocab_size)  # (V,)
    keys, pair_counts = np.unique(before * vocab_size + after, return_counts=True)
    before, after = pairs(test_ids)
    wanted = before * vocab_size + after
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    seen = np.where(keys[place] == wanted, pair_counts[place], 0)
    bigram = (seen + weight * unigram[after]) / (context[before] + weight)
    return float(-np.log(unigram[after]).mean()), float(-np.log(bigram).mean())


_BLEU = BLEU(tokenize="none")  # the texts are words already
# One text may have no four words in a row.
_SENTENCE_BLEU = BLEU(tokenize="none", effective_order=True)


def bleu_signature() -> str:
    """sacrebleu's own line on how `bleu` counts, to compare with other programs (Post 2018)."""
    _BLEU.corpus_score(["a"], [["a"]])  # before this, it does not know the number of references
    return str(_BLEU.get_signature())


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU, 0 to 100, of hypotheses against one reference each (words between spaces).

    Papineni et al. 2002; sacrebleu (Post 2018), no tokenizer. Raises ValueError if there are not
    as many of one as of the other.
    """
    return _bleu_of([_bleu_counts(h, r) for h, r in zip(hypotheses, references, strict=True)])


def _bleu_counts(hypothesis: str, reference: str) -> np.ndarray:  # (10,)
    """Matching and all n-grams (n = 1 to 4 each), words of both texts: BLEU needs their sums."""
    score = _SENTENCE_BLEU.sentence_score(hypothesis, [reference])
    return np.array([*score.counts, *score.totals, score.sys_len, score.ref_len])


def _bleu_of(counts: Sequence[np.ndarray]) -> float:
    total = [int(value) for value in np.sum(counts, axis=0)]
    return _BLEU.compute_bleu(total[:4], total[4:8], total[8], total[9], smooth_method="exp").score


@dataclass(frozen=True)
class Continuations:
    """Continuations of the beginnings of stories, beside the true ones, and their measures."""

    prompts: list[str]
    references: list[str]  # the true continuations
    hypotheses: list[str]  # the model's
    generations: list[Generation]
    nats: np.ndarray  # (N,), -log p of each under the model
    tokens: np.ndarray  # (N,), `<eos>` included

    @property
    def perplexity(self) -> float:
        """exp of the mean nats per token that the model gives these continuations."""
        return float(np.exp(self.nats.sum() / self.tokens.sum()))

    @property
    def bleu(self) -> float:
        return bleu(self.hypotheses, self.references)

    @property
    def mean_story_bleu(self) -> float:
        """The mean of each continuation's own BLEU, 0 to 100.

        A text that is too short for groups of four words counts by its shorter ones.
        """
        return float(
            np.mean(
                [
                    _SENTENCE_BLEU.sentence_score(h, [r]).score
                    for h, r in zip(self.hypotheses, self.references, strict=True)
                ]
            )
        )

    def __add__(self, other: "Continuations") -> "Continuations":
        """The two together, as of two seeds."""
        both = [(getattr(self, part.name), getattr(other, part.name)) for part in fields(self)]
        lists = [mine + theirs for mine, theirs in both[:4]]
        return Continuations(*lists, *map(np.concatenate, both[4:]))

    def intervals(self, resamples: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
        """95 % bootstrap intervals of perplexity and BLEU, over stories and seeds.

        The continuations of one prompt are alike, so prompts are drawn first, with replacement,
        and for each as many of its continuations as it has (Davison & Hinkley 1997, section 3.8).
        """
        rng = np.random.default_rng(seed)
        counts = np.array(
            [_bleu_counts(h, r) for h, r in zip(self.hypotheses, self.references, strict=True)]
        )  # (N, 10)
        of_prompt: dict[tuple[str, str], list[int]] = {}
        for index, key in enumerate(zip(self.prompts, self.references, strict=True)):
            of_prompt.setdefault(key, []).append(index)
        groups = [np.array(indices) for indices in of_prompt.values()]
        found: dict[str, list[float]] = {"perplexity": [], "bleu": []}
        for _ in range(resamples):
            chosen = [groups[i] for i in rng.integers(len(groups), size=len(groups))]
            draw = np.concatenate(
                [group[rng.integers(len(group), size=len(group))] for group in chosen]
            )  # (N,)
            found["perplexity"].append(np.exp(self.nats[draw].sum() / self.tokens[draw].sum()))
            found["bleu"].append(_bleu_of(counts[draw]))
        percentiles = lambda values: tuple(np.percentile(values, [2.5, 97.5]).tolist())
        return {name: percentiles(values) for name, values in found.items()}


def evaluate_continuations(
    model: Decoder,
    tokenizer: WordTokenizer,
    texts: Sequence[str],
    *,
    prompt_tokens: int = 5,
    max_new_tokens: int | None = None,
    **how,
) -> Continuations:
    """Continue the beginnings of texts by `generate(..., **how)`, and compare with what followed.

    The prompt has no part in any measure.

    Args:
        prompt_tokens: how many words of each text the model is given.
        max_new_tokens: how many it may write, to which the true continuation is cut too; None: to
            the end of its context.
        how: as `generate` takes it. strategy="true" takes the true continuation, as a reference.

    Raises:
        ValueError: if a text is no longer than its prompt; otherwise as `generate` does.
    """
    room = model.config.context_length - 1 - prompt_tokens
    limit = room if max_new_tokens is None else min(room, max_new_tokens)
    words = [tokenizer.split(text) for text in texts]
    for index, story in enumerate(words):
        require(
            len(story) > prompt_tokens,
            f"text {index} has {len(story)} words: nothing follows a prompt of {prompt_tokens}",
        )
    prompts = [" ".join(story[:prompt_tokens]) for story in words]
    references = [" ".join(story[prompt_tokens : prompt_tokens + limit]) for story in words]
    if how.get("strategy") == "true":
        generations = []
        for text in texts:
            ids = [tokenizer.sos_id, *tokenizer.encode(text), tokenizer.eos_id]
            before, after = ids[: prompt_tokens + 1], ids[prompt_tokens + 1 :][:limit]
            generations.append(_as_generation(model, tokenizer, before, after))
        return _continuations(tokenizer, prompts, references, generations, references)
    generations = generate(model, tokenizer, prompts, max_new_tokens=limit, **how)
    return _continuations(tokenizer, prompts, references, generations)


def _continuations(tokenizer, prompts, references, generations, hypotheses=None) -> Continuations:
    if hypotheses is None:
        hypotheses = [
            " ".join(tokenizer.word(i) for i in one.ids if i != tokenizer.eos_id)
            for one in generations
        ]
    nats = np.array([-one.logprob for one in generations])  # (N,)
    tokens = np.array([len(one.ids) for one in generations])  # (N,)
    return Continuations(prompts, references, hypotheses, generations, nats, tokens)


@torch.no_grad()
def _as_generation(
    model: Decoder, tokenizer: WordTokenizer, prompt: list[int], new: list[int]
) -> Generation:
    """Given ids as if the model had written them: with their log-probability under it."""
    model.check_tokenizer(tokenizer)
    ids = torch.tensor([prompt + new], device=model.output.weight.device)  # (1, S)
    logits = model(ids[:, :-1])[0, len(prompt) - 1 :].float()  # (len(new), V)
    logprob = logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None]).sum().item()
    return Generation(tokenizer.decode(new, after=prompt), new, logprob, logprob / max(1, len(new)))


class Trigram:
    """A model without a network: the next token by how often it followed the last two.

    Smoothed towards the bigram, and that towards the unigram.

    ids: encoded stories (N, T). weight: made-up observations that the smoothing weighs.
    """

    def __init__(self, ids: Tensor, vocab_size: int, pad_id: int = 0, weight: float = 1.0):
        self.vocab_size, self.weight, self.tables = vocab_size, weight, []
        for order in (1, 2, 3):
            windows = ids.unfold(1, order, 1)  # (N, T-order+1, order)
            rows = windows.reshape(-1, order).long().numpy()  # (N·(T-order+1), order)
            rows = rows[rows[:, -1] != pad_id]
            table: dict[tuple, dict[int, int]] = {}
            for *before, after in rows.tolist():
                counts = table.setdefault(tuple(before), {})
                counts[after] = counts.get(after, 0) + 1
            self.tables.append(table)

    def distribution(self, before: Sequence[int]) -> np.ndarray:  # (V,)
        """Probabilities of the token after `before`, which may be of any length."""
        probabilities = np.full(self.vocab_size, 1 / self.vocab_size)  # (V,)
        for order, table in enumerate(self.tables):
            counts = (
                table.get(tuple(before[len(before) - order :]), {}) if len(before) >= order else {}
            )
            total = sum(counts.values()) + self.weight
            probabilities = probabilities * (self.weight / total)  # (V,)
            probabilities[list(counts)] += np.array([*counts.values()]) / total
        return probabilities

    def continuations(
        self,
        model: Decoder,
        tokenizer: WordTokenizer,
        like: Continuations,
        limit: int,
        seed: int = 0,
    ) -> Continuations:
        """Sampled after the same prompts; their nats are those that `model` gives them."""
        rng, generations = np.random.default_rng(seed), []
        for prompt in like.prompts:
            ids, new = [tokenizer.sos_id, *tokenizer.encode(prompt)], []
            while len(new) < limit and (not new or new[-1] != tokenizer.eos_id):
                p = self.distribution(ids + new)  # (V,)
                p[tokenizer.excluded_ids(self.vocab_size)] = 0
                new.append(int(rng.choice(self.vocab_size, p=p / p.sum())))
            generations.append(_as_generation(model, tokenizer, ids, new))
        return _continuations(tokenizer, like.prompts, like.references, generations)
