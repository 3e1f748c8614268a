"""Measures: perplexity, bits per character, landmarks, BLEU, continuations, the grammar's verdict.

Shape comments name the sizes: N texts, M validation texts, T tokens, V vocabulary.
"""

import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import chain

import numpy as np
import torch
from sacrebleu.metrics import BLEU
from torch import Tensor

from helpers.decoding import Generation, as_generation, generate
from helpers.grammar import Grammar
from helpers.loss import mean_loss
from helpers.model import Decoder
from helpers.support.checks import TEXTS, check, counts, require
from helpers.support.hardware import evaluating
from helpers.tokenizer import WordTokenizer
from helpers.training import encode_stories


def perplexity(model: Decoder, tokenizer: WordTokenizer, texts: Sequence[str]) -> float:
    """exp of the mean loss per token, in fp32.

    Each text counts up to the model's context_length, and its `<sos>` is not predicted. Raises
    ValueError if there are no texts, or if the tokenizer is another model's.
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


def bits_per_character(model: Decoder, tokenizer: WordTokenizer, texts: Sequence[str]) -> float:
    """-log2 p of whole texts, in fp32, per character: compares models of different tokenizers.

    A text costs its tokens and its `<eos>`. One longer than the context is read in windows of
    context_length tokens, each half a context after the one before. A later window predicts only
    its new tokens, from half a context or more: they cost more than from a whole one.

    An unknown word costs `<unk>`, and its letters by their frequency in the tokenizer's words.
    What the tokenizer loses costs nothing: capitals, white space, what it straightens or drops of
    the marks. So with keep_punctuation=False a text that has marks seems cheaper than it is.

    Args:
        texts: their characters are counted as they are written, capitals and white space too, but
            for white space at either end.

    Raises:
        ValueError: if there are no texts, or no characters, or if the tokenizer is another model's.
    """
    check(locals(), {"texts": TEXTS})
    stories = [[tokenizer.sos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    characters = sum(len(text.strip()) for text in texts)
    require(characters, "no characters to divide the bits among: the texts are empty")
    length, step = model.config.context_length, (model.config.context_length + 1) // 2
    nats = _spelling(tokenizer, texts)
    for ids in stories:
        for start in range(0, max(len(ids) - length, 0) + step, step):
            window, read = ids[start : start + length], length - step if start else 1
            nats -= _as_generated(model, tokenizer, window[:read], window[read:]).logprob
    return nats / math.log(2) / characters


def _spelling(tokenizer: WordTokenizer, texts: Sequence[str]) -> float:
    """Nats of the unknown words of texts, letter by letter, each word ended by a space.

    The letters of the tokenizer's words, each word once, are counted plus one. All letters that
    they lack have a count of one together, which every character of Unicode shares: or else a
    tokenizer without letters would spell for nothing.
    """
    vocabulary = " ".join([*tokenizer.words, ""])
    counts_of = Counter(vocabulary) + Counter({*vocabulary, " "})
    total, lacking = counts_of.total() + 1, 1 / (sys.maxunicode + 1)
    known, words = set(tokenizer.words), chain.from_iterable(map(tokenizer.split, texts))
    spelled = "".join(f"{word} " for word in words if word not in known)
    return sum(math.log(total / counts_of.get(letter, lacking)) for letter in spelled)


def against_truth(
    model: Decoder, tokenizer: WordTokenizer, grammar: Grammar, texts: Sequence[str]
) -> dict[str, np.ndarray]:
    """The model's distribution q of the next word beside the true one p, at each word of stories.

    A story counts up to the model's context_length. `<eos>` is a word, and all words outside the
    vocabulary are one, `<unk>`. Averaged over all stories, loss - truth is the divergence.

    Returns:
        (positions,) of float64 each: "loss", -log q of the word that follows; "truth", -log p of
        it; "divergence", the sum of p · log(p / q) (Kullback & Leibler 1951), all in nats; and
        "impossible", how much q gives to words that cannot follow.

    Raises:
        ValueError: if the grammar does not tell these texts, or the tokenizer is another model's.
    """
    check(locals(), {"texts": TEXTS})
    model.check_tokenizer(tokenizer)
    index, found = {tokenizer.word(i): i for i in range(len(tokenizer))}, []
    for text in texts:
        words = tokenizer.split(text)
        ids = [tokenizer.sos_id, *tokenizer.encode(text), tokenizer.eos_id]
        ids = ids[: model.config.context_length]
        with torch.no_grad(), evaluating(model):
            logits = model(torch.tensor([ids[:-1]], device=model.output.weight.device))[0]
        log_q = logits.log_softmax(-1).double().cpu().numpy()  # (T-1, V)
        for t, target in enumerate(ids[1:]):
            p = Counter()
            for word, chance in grammar.next_words(words[:t]).items():
                p[index.get(word, tokenizer.unk_id)] += chance
            require(p[target], f"no story of this grammar begins with {' '.join(words[: t + 1])!r}")
            log_p = np.log([*p.values()])  # (possible,)
            divergence = np.exp(log_p) @ (log_p - log_q[t, [*p]])
            impossible = np.delete(np.exp(log_q[t]), [*p]).sum()
            found.append((-log_q[t, target], -math.log(p[target]), divergence, impossible))
    names = ("loss", "truth", "divergence", "impossible")
    return dict(zip(names, np.array(found).T, strict=True))


def landmarks(
    train_ids: Tensor, validation_ids: Tensor, vocab_size: int, pad_id: int = 0
) -> dict[str, float]:
    """Losses of three models that need no network: the landmarks of a loss curve.

    The uniform model finds every token equally likely, the unigram model goes by frequency, and
    the bigram model by frequency after the token before, smoothed towards the unigram. The weight
    of the smoothing is chosen on the last tenth of the training stories.

    Args:
        train_ids: (N, T), what the models are fitted on: two stories at least.
        validation_ids: (M, T), what their losses are measured on.

    Returns:
        {"uniform", "unigram", "bigram"} to nats per token.

    Raises:
        ValueError: if there are too few stories, or they have fewer than two tokens.
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
    first, second = _pairs(train_ids, pad_id).T  # (training pairs,) each
    before, after = _pairs(test_ids, pad_id).T  # (test pairs,) each
    # One is added to each count: no word is impossible.
    unigram = (np.bincount(second, minlength=vocab_size) + 1) / (len(second) + vocab_size)  # (V,)
    keys, pair_counts = np.unique(first * vocab_size + second, return_counts=True)
    wanted = before * vocab_size + after  # (test pairs,)
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)  # (test pairs,)
    seen = np.where(keys[place] == wanted, pair_counts[place], 0)  # (test pairs,)
    bigram = (seen + weight * unigram[after]) / (
        np.bincount(first, minlength=vocab_size)[before] + weight
    )  # (test pairs,)
    return float(-np.log(unigram[after]).mean()), float(-np.log(bigram).mean())


def _pairs(ids: Tensor, pad_id: int) -> np.ndarray:  # (pairs, 2)
    """Each two tokens in a row of encoded stories (N, T), unless the second is `<pad>`."""
    require(
        len(ids) and ids.shape[1] >= 2,
        f"ids of shape {tuple(ids.shape)} hold no two tokens in a row: give more stories, or "
        "longer ones",
    )
    pairs = ids.unfold(1, 2, 1).reshape(-1, 2)  # (N·(T-1), 2)
    return pairs[pairs[:, 1] != pad_id].long().numpy()


_BLEU = BLEU(tokenize="none", references=[["a"]])  # the texts are words already
# One text may have no four words in a row.
_SENTENCE_BLEU = BLEU(tokenize="none", effective_order=True)


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU, 0 to 100, of hypotheses against one reference each (words between spaces).

    Papineni et al. 2002; sacrebleu (Post 2018), no tokenizer. Raises ValueError if there are none,
    or not as many of one as of the other.
    """
    check(locals(), {"hypotheses references": TEXTS})
    return _bleu_of(sum(_ngrams(h, r) for h, r in zip(hypotheses, references, strict=True)))


def _ngrams(hypothesis: str, reference: str) -> np.ndarray:  # (10,)
    """Matching and all n-grams (n = 1 to 4 each), words of both texts: BLEU needs their sums."""
    score = _SENTENCE_BLEU.sentence_score(hypothesis, [reference])
    return np.array([*score.counts, *score.totals, score.sys_len, score.ref_len])


def _bleu_of(ngrams: np.ndarray) -> float:
    return _BLEU.compute_bleu(
        ngrams[:4].tolist(), ngrams[4:8].tolist(), *ngrams[8:].tolist(), smooth_method="exp"
    ).score


@dataclass(frozen=True)
class Continuations:
    """Continuations of the beginnings of stories, beside the true ones, and their measures."""

    prompts: list[str]
    references: list[str]  # the true continuations
    hypotheses: list[str]  # the model's
    generations: list[Generation]

    @property
    def nats(self) -> np.ndarray:  # (N,)
        """-log p of each under the model."""
        return np.array([-one.logprob for one in self.generations])

    @property
    def tokens(self) -> np.ndarray:  # (N,)
        """The number of tokens of each, `<eos>` included."""
        return np.array([len(one.ids) for one in self.generations])

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
        return Continuations(
            *(getattr(self, part.name) + getattr(other, part.name) for part in fields(self))
        )

    def intervals(self, resamples: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
        """95 % bootstrap intervals of perplexity and BLEU, over stories and seeds.

        The continuations of one prompt are alike, so prompts are drawn first, with replacement,
        and for each as many of its continuations as it has (Davison & Hinkley 1997, section 3.8).
        """
        rng, nats, tokens = np.random.default_rng(seed), self.nats, self.tokens
        ngrams = np.array(list(map(_ngrams, self.hypotheses, self.references)))  # (N, 10)
        stories = list(zip(self.prompts, self.references, strict=True))
        groups = [
            np.flatnonzero([story == one for story in stories]) for one in dict.fromkeys(stories)
        ]
        draws = [
            np.concatenate(
                [
                    rng.choice(groups[i], len(groups[i]))
                    for i in rng.integers(len(groups), size=len(groups))
                ]
            )  # (N,)
            for _ in range(resamples)
        ]
        found = [
            (np.exp(nats[d].sum() / tokens[d].sum()), _bleu_of(ngrams[d].sum(axis=0)))
            for d in draws
        ]
        bounds = np.percentile(found, [2.5, 97.5], axis=0).T.tolist()
        return {"perplexity": tuple(bounds[0]), "bleu": tuple(bounds[1])}


def evaluate_continuations(
    model: Decoder,
    tokenizer: WordTokenizer,
    texts: Sequence[str],
    *,
    prompt_tokens: int = 5,
    max_new_tokens: int | None = None,
    writer: Callable[[list[int], int], list[int]] | None = None,
    **how,
) -> Continuations:
    """Continue the beginnings of texts by `generate(..., **how)`, and compare with what followed.

    The prompt has no part in any measure.

    Args:
        prompt_tokens: how many words of each text the model is given.
        max_new_tokens: how many it may write, to which the true continuation is cut too; None: to
            the end of its context.
        writer: writes in place of the model, which only judges: it takes the ids before (`<sos>`
            first) and how many it may write, and returns the new ones.
        how: as `generate` takes it. strategy="true" takes the true continuation, as a reference.

    Raises:
        ValueError: if there are no texts, one is no longer than its prompt, or nothing may be
            written; otherwise as `generate` does.
    """
    longest = model.config.context_length - 2  # prompt, beside `<sos>` and a new token
    check(
        locals(),
        {
            "texts": TEXTS,
            "prompt_tokens": (
                f"a whole number from 0 to {longest}",
                lambda number: isinstance(number, int) and 0 <= number <= longest,
            ),
            "max_new_tokens": ("a whole number of at least 1", counts, None),
        },
    )
    limit = min(longest + 1 - prompt_tokens, max_new_tokens or longest + 1)
    words = [tokenizer.split(text) for text in texts]
    for index, story in enumerate(words):
        require(
            len(story) > prompt_tokens,
            f"text {index} has {len(story)} words: nothing follows a prompt of {prompt_tokens}",
        )
    prompts = [" ".join(story[:prompt_tokens]) for story in words]
    references = [" ".join(story[prompt_tokens : prompt_tokens + limit]) for story in words]
    given = [  # the prompt's ids, and the true ones after them
        (ids[: prompt_tokens + 1], ids[prompt_tokens + 1 :][:limit])
        for ids in ([tokenizer.sos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in texts)
    ]
    if how.get("strategy") == "true":
        true = [_as_generated(model, tokenizer, before, after) for before, after in given]
        return Continuations(prompts, references, references, true)
    if writer is None:
        generations = generate(model, tokenizer, prompts, max_new_tokens=limit, **how)
    else:
        generations = [
            _as_generated(model, tokenizer, before, writer(before, limit)) for before, _ in given
        ]
    hypotheses = [
        " ".join(tokenizer.word(i) for i in one.ids if i != tokenizer.eos_id) for one in generations
    ]
    return Continuations(prompts, references, hypotheses, generations)


def judge_continuations(
    grammar: Grammar, tokenizer: WordTokenizer, written: Continuations
) -> dict[str, float]:
    """What the grammar says about continuations: how many could be stories, and for how long.

    A continuation is possible if no word of it is impossible, up to its end or to its cut.

    Returns:
        "possible", the share of those, and "low" and "high", its 95 % interval (Wilson 1927);
        "words", the median number of words before the first impossible one, of continuations that
        have one (or else nan); "nats", the mean true -log p of the words before it, of all.

    Raises:
        ValueError: if no story of this grammar begins with one of the prompts.
    """
    before, nats = [], []
    for prompt, one in zip(written.prompts, written.generations, strict=True):
        words = [*prompt.split(), *map(tokenizer.word, one.ids)]
        judged, given = grammar.judge(words), len(prompt.split())
        if judged.broken_at is not None:
            require(judged.broken_at >= given, f"no story of this grammar begins with {prompt!r}")
            before.append(judged.broken_at - given)
        nats.append(judged.nats[given : len(words)])
    count = len(nats)
    share, z = 1 - len(before) / count, 1.96
    middle = share + z**2 / (2 * count)
    width = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return {
        "possible": share,
        "low": (middle - width) / (1 + z**2 / count),
        "high": (middle + width) / (1 + z**2 / count),
        "words": float(np.median(before)) if before else math.nan,
        "nats": float(np.concatenate(nats).mean()),
    }


def quotable(texts: Sequence[str], stories: Sequence[str], longest: int = 12) -> list[str]:
    """Texts as they may be published: of more than `longest` words in a row that one of the stories
    has, those after `longest` are left out, with "…" in their place."""
    split = [" ".join(re.findall(r"\w+", story.lower())) for story in stories]
    told = "\n".join(f" {words} " for words in split)
    found = []
    for text in texts:
        pieces = re.findall(r"^\W+|\w+\W*", text)
        shown, run = "", []
        for piece in pieces:
            run += re.findall(r"\w+", piece.lower())
            while len(run) > 1 and f" {' '.join(run)} " not in told:
                run = run[1:]
            if len(run) <= longest:
                shown += piece
            elif not shown.endswith("… "):
                shown += "… "
        found.append(shown.rstrip())
    return found


def _as_generated(
    model: Decoder, tokenizer: WordTokenizer, before: list[int], new: list[int]
) -> Generation:
    """New ids after others, as if the model had written them: with their log-probability."""
    model.check_tokenizer(tokenizer)
    ids = torch.tensor([before + new], device=model.output.weight.device)  # (1, S)
    with torch.no_grad(), evaluating(model):
        logits = model(ids[:, :-1])[0, len(before) - 1 :].float()  # (len(new), V)
    logprob = logits.log_softmax(-1)[range(len(new)), new].sum().item()
    return as_generation(tokenizer, before, new, logprob)
