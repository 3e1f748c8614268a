"""Measures: perplexity, the landmarks of a loss curve, what each head looks at, and how good
continuations are.
"""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sacrebleu.metrics import BLEU
from torch import Tensor

from helpers.decoding import Generation, generate
from helpers.model import Decoder
from helpers.stories import Stories
from helpers.tokenizer import WordTokenizer
from helpers.training import encode_stories, mean_loss


def perplexity(model: Decoder, tokenizer: WordTokenizer, texts: Sequence[str]) -> float:
    """exp of the mean loss per token, in fp32, over the first context_length tokens of each text,
    `<sos>` not predicted.
    """
    ids = encode_stories(tokenizer, texts, model.config.context_length)  # (N, T)
    return math.exp(mean_loss(model, ids, tokenizer.pad_id, precision="fp32"))


def landmarks(
    train_ids: Tensor, validation_ids: Tensor, vocab_size: int, pad_id: int = 0
) -> dict[str, float]:
    """Losses in nats per token, on validation_ids (M, T), of three models that need no network,
    fitted on train_ids (N, T).

    uniform: every token equally likely; unigram: by frequency; bigram: by frequency after the token
    before, smoothed towards the unigram. The smoothing weight is chosen on the last tenth of the
    training stories.
    """
    fit, tune = train_ids[: -len(train_ids) // 10], train_ids[-len(train_ids) // 10 :]
    weights = [0.3, 1, 3, 10, 30, 100]
    best = min(weights, key=lambda weight: _ngram_losses(fit, tune, vocab_size, pad_id, weight)[1])
    unigram, bigram = _ngram_losses(train_ids, validation_ids, vocab_size, pad_id, best)
    return {"uniform": math.log(vocab_size), "unigram": unigram, "bigram": bigram}


def _ngram_losses(
    train_ids: Tensor, test_ids: Tensor, vocab_size: int, pad_id: int, weight: float
) -> tuple[float, float]:
    """P(w | v) = (count(v, w) + weight · P(w)) / (count(v) + weight), a Dirichlet prior centred on
    the unigram.
    """

    def pairs(ids):
        before, after = (
            part.flatten().long().numpy() for part in (ids[:, :-1], ids[:, 1:])
        )  # (N·(T-1),) each
        real = after != pad_id
        return before[real], after[real]

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


def entropy_floor(stories: Stories, length: int) -> float:
    """The mean loss of the true probabilities, in nats per token, on the first `length` ids of the
    validation stories: on average over such stories, no model can have a lower one.

    Raises ValueError for a corpus whose probabilities nobody knows.
    """
    if stories.validation_nats is None:
        raise ValueError(
            f"the entropy of {stories.name!r} is not known: only the bundled corpus has an exact "
            "floor"
        )
    nats = [
        story[: length - 1] for story in stories.validation_nats
    ]  # <sos> is given, length - 1 tokens are predicted
    return float(np.concatenate(nats).mean())


def words_after(pattern: str, texts: Iterable[str], tokenizer: WordTokenizer) -> set[int]:
    """Ids of all words that group 1 of a regular expression finds in texts. Words outside the
    vocabulary are left out.

    words_after(r"\\b(?:named|called) ([A-Z]\\w+)", …) are the names of a story's people and
    animals.
    """
    found = {match for text in texts for match in re.findall(pattern, text)}
    return {i for match in found for i in tokenizer.encode(match)} - {tokenizer.unk_id}


PATTERNS = (
    "itself",
    "previous word",
    "start token",
    "same word",
    "after same word",
    "same name",
    "previous sound",
    "next sound",
)


def pattern_targets(
    ids: Sequence[int], names: Collection[int] = (), sounds: Collection[int] = ()
) -> dict[str, np.ndarray]:
    """For each pattern a boolean (T, T): does query row t, under this pattern, look at key s? Keys
    never lie ahead.

    "same word" is an earlier copy of the query's word; "after same word" the word that followed
    such a copy (an induction head, Olsson et al. 2022). "same name" belongs to queries whose NEXT
    word is one of `names` (token ids) and has been mentioned before: its earlier mentions are what
    a head that brings the name back must look at. "previous sound" and "next sound" are "previous
    word" and "after same word" among `sounds` alone, the words of songs: query, key and, for "next
    sound", the copy are all sounds.
    """
    ids = np.asarray(ids)  # (T,)
    T = len(ids)
    t, s = np.indices((T, T))  # (T, T) each: query, key
    copy = (ids[:, None] == ids[None, :]) & (s < t)  # (T, T)
    after, named = np.zeros((2, T, T), dtype=bool)
    after[:, 1:] = copy[:, :-1]
    named[:-1] = copy[1:] & np.isin(ids[1:], list(names))[:, None]
    sound = np.isin(ids, list(sounds))  # (T,)
    both = sound[:, None] & sound[None, :]  # (T, T)
    return {
        "itself": s == t,
        "previous word": s == t - 1,
        "start token": (s == 0) & (t > 1),
        "same word": copy,
        "after same word": after,
        "same name": named,
        "previous sound": (s == t - 1) & both,
        "next sound": after & both,
    }


@torch.no_grad()
def head_scores(
    model: Decoder,
    ids: Tensor,
    names: Collection[int] = (),
    sounds: Collection[int] = (),
    pad_id: int = 0,
) -> dict[str, np.ndarray]:
    """How much each head follows each pattern: {pattern: (L, H)}, 0 for an even spread of
    attention, 1 for nothing else.

    The score is (m - c) / (1 - c): m is the attention on the pattern's keys, averaged over the
    queries that have such keys, and c what a head that looks at all words alike would put there.
    ids: encoded stories (N, T); `<pad>` is left out. A pattern that no query of these stories has
    is left out too.
    """
    was_training = model.training
    model.eval()
    mass, even, queries = (dict.fromkeys(PATTERNS, 0.0) for _ in range(3))
    for rows in ids.split(16):
        _, attention = model(rows.long().to(model.output.weight.device), return_attention=True)
        attention = attention.float().cpu().numpy()  # (L, B, H, T, T)
        for b, row in enumerate(rows.tolist()):
            length = len(row) - row.count(pad_id)
            weights = attention[:, b, :, :length, :length]  # (L, H, t, t)
            for pattern, keys in pattern_targets(row[:length], names, sounds).items():
                asked = keys.any(axis=1)  # (t,)
                mass[pattern] = mass[pattern] + (weights * keys).sum(axis=-1)[..., asked].sum(
                    axis=-1
                )  # (L, H)
                even[pattern] += (keys.sum(axis=1) / np.arange(1, length + 1))[asked].sum()
                queries[pattern] += asked.sum()
    model.train(was_training)
    return {
        p: (mass[p] - even[p]) / (queries[p] - even[p]) for p in PATTERNS if queries[p] > even[p]
    }


# --- Continuations --------------------------------------------------------------------------------

_BLEU = BLEU(tokenize="none")  # the texts are words already
_SENTENCE_BLEU = BLEU(
    tokenize="none", effective_order=True
)  # of one text, which may have no four words in a row


def bleu_signature() -> str:
    """sacrebleu's own line on how `bleu` counts: what another program needs to compare its figure
    (Post 2018).
    """
    _BLEU.corpus_score(
        ["a"], [["a"]]
    )  # before a first score it does not know the number of references
    return str(_BLEU.get_signature())


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU, 0 to 100, of hypotheses against one reference each; texts are words between
    spaces.

    Papineni et al. 2002; sacrebleu (Post 2018), no tokenizer. Raises ValueError where the two are
    not of one length.
    """
    return _bleu_of([_bleu_counts(h, r) for h, r in zip(hypotheses, references, strict=True)])


def _bleu_counts(hypothesis: str, reference: str) -> np.ndarray:  # (10,)
    """Matching n-grams, n-grams (n = 1 to 4 each), words of the hypothesis and of the reference:
    BLEU needs their sums.
    """
    score = _SENTENCE_BLEU.sentence_score(hypothesis, [reference])
    return np.array([*score.counts, *score.totals, score.sys_len, score.ref_len])


def _bleu_of(counts: Sequence[np.ndarray]) -> float:
    total = [int(value) for value in np.sum(counts, axis=0)]
    return _BLEU.compute_bleu(total[:4], total[4:8], total[8], total[9], smooth_method="exp").score


@dataclass(frozen=True)
class Continuations:
    """Continuations of the beginnings of stories, beside the true ones, and their measures.

    nats, tokens: of each continuation, (N,): -log p under the model and the number of tokens,
    `<eos>` included.
    """

    prompts: list[str]
    references: list[str]
    hypotheses: list[str]
    generations: list[Generation]
    nats: np.ndarray
    tokens: np.ndarray

    @property
    def perplexity(self) -> float:
        """exp of the mean nats per token that the model gives these continuations, all tokens
        counted alike.
        """
        return float(np.exp(self.nats.sum() / self.tokens.sum()))

    @property
    def bleu(self) -> float:
        return bleu(self.hypotheses, self.references)

    @property
    def mean_story_bleu(self) -> float:
        """The mean of each continuation's own BLEU, 0 to 100; where a text is too short for fours,
        of the shorter groups.
        """
        pairs = zip(self.hypotheses, self.references, strict=True)
        return float(np.mean([_SENTENCE_BLEU.sentence_score(h, [r]).score for h, r in pairs]))

    def __add__(self, other: "Continuations") -> "Continuations":
        """The two together, as of two seeds."""
        lists = [
            getattr(self, n) + getattr(other, n)
            for n in ("prompts", "references", "hypotheses", "generations")
        ]
        arrays = [
            np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("nats", "tokens")
        ]
        return Continuations(*lists, *arrays)

    def intervals(self, resamples: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
        """95 % bootstrap intervals of perplexity and BLEU: what as many other stories and seeds
        would give.

        The continuations of one prompt are alike, so prompts are drawn first, with replacement, and
        for each as many of its continuations as it has (Davison & Hinkley 1997, section 3.8).
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
        return {
            name: tuple(np.percentile(values, [2.5, 97.5]).tolist())
            for name, values in found.items()
        }


def evaluate_continuations(
    model: Decoder,
    tokenizer: WordTokenizer,
    texts: Sequence[str],
    *,
    prompt_tokens: int = 5,
    max_new_tokens: int | None = None,
    **how,
) -> Continuations:
    """Continue the first `prompt_tokens` words of each text by `generate(..., **how)`, and compare
    with what followed.

    The true continuation is cut to the number of tokens that the model may write (None: to the end
    of its context). The prompt has no part in any measure. how: strategy="true" takes the true
    continuation itself, as a reference. Raises ValueError where a text is no longer than its
    prompt; otherwise as `generate` does.
    """
    room = model.config.context_length - 1 - prompt_tokens
    limit = room if max_new_tokens is None else min(room, max_new_tokens)
    words = [tokenizer.split(text) for text in texts]
    for index, story in enumerate(words):
        if len(story) <= prompt_tokens:
            raise ValueError(
                f"text {index} has {len(story)} words: nothing follows a prompt of {prompt_tokens}"
            )
    prompts = [" ".join(story[:prompt_tokens]) for story in words]
    references = [" ".join(story[prompt_tokens : prompt_tokens + limit]) for story in words]
    if how.get("strategy") == "true":
        generations = [
            _as_generation(
                model,
                tokenizer,
                [tokenizer.sos_id, *ids[:prompt_tokens]],
                ids[prompt_tokens:][:limit],
            )
            for ids in ([*tokenizer.encode(text), tokenizer.eos_id] for text in texts)
        ]
        return _continuations(tokenizer, prompts, references, generations, references)
    generations = generate(model, tokenizer, prompts, max_new_tokens=limit, **how)
    return _continuations(tokenizer, prompts, references, generations)


def _continuations(tokenizer, prompts, references, generations, hypotheses=None) -> Continuations:
    if hypotheses is None:
        ids = [[i for i in one.ids if i != tokenizer.eos_id] for one in generations]
        hypotheses = [" ".join(tokenizer.word(i) for i in row) for row in ids]
    nats = np.array([-one.logprob for one in generations])  # (N,)
    return Continuations(
        prompts,
        references,
        hypotheses,
        generations,
        nats,
        np.array([len(g.ids) for g in generations]),
    )


@torch.no_grad()
def _as_generation(
    model: Decoder, tokenizer: WordTokenizer, prompt: list[int], new: list[int]
) -> Generation:
    """Given ids as if the model had written them: with their log-probability under it."""
    ids = torch.tensor([prompt + new], device=model.output.weight.device)  # (1, S)
    logits = model(ids[:, :-1])[0, len(prompt) - 1 :].float()  # (len(new), V)
    logprob = logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None]).sum().item()
    return Generation(tokenizer.decode(new, after=prompt), new, logprob, logprob / max(1, len(new)))


class Trigram:
    """A model without a network: the next token by how often it followed the last two in encoded
    stories (N, T).

    Smoothed towards the bigram, that towards the unigram, each with the weight of `weight` made-up
    observations.
    """

    def __init__(self, ids: Tensor, vocab_size: int, pad_id: int = 0, weight: float = 1.0):
        self.vocab_size, self.weight, self.tables = vocab_size, weight, []
        for order in (1, 2, 3):
            rows = (
                ids.unfold(1, order, 1).reshape(-1, order).long().numpy()
            )  # (N·(T-order+1), order)
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
            total = sum(counts.values())
            probabilities = probabilities * (self.weight / (total + self.weight))  # (V,)
            probabilities[list(counts)] += np.fromiter(counts.values(), float, len(counts)) / (
                total + self.weight
            )
        return probabilities

    def continuations(
        self,
        model: Decoder,
        tokenizer: WordTokenizer,
        like: Continuations,
        limit: int,
        seed: int = 0,
    ) -> Continuations:
        """Sampled from the trigram model after the same prompts; their nats are those that `model`
        gives them.
        """
        rng, generations = np.random.default_rng(seed), []
        for prompt in like.prompts:
            ids, new = [tokenizer.sos_id, *tokenizer.encode(prompt)], []
            while len(new) < limit and (not new or new[-1] != tokenizer.eos_id):
                p = self.distribution(ids + new)  # (V,)
                p[[tokenizer.pad_id, tokenizer.sos_id, tokenizer.unk_id]] = 0
                p[len(tokenizer) :] = 0
                new.append(int(rng.choice(self.vocab_size, p=p / p.sum())))
            generations.append(_as_generation(model, tokenizer, ids, new))
        return _continuations(tokenizer, like.prompts, like.references, generations)
