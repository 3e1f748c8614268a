"""Text from a prompt: greedy, sampled or by beam search, each with or without a cache.

Shape comments name the sizes: B rows, S tokens, V vocabulary, W beams.
"""

import math
import operator
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.kv_cache import KVCache
from helpers.model import Decoder
from helpers.support.checks import check, require, texts_of
from helpers.support.hardware import evaluating, keep_freed_memory, packed_weights
from helpers.tokenizer import WordTokenizer

_NAN = "the model's scores are NaN: load a checkpoint whose weights are finite, or train again"
ROWS = 256  # read at once; more prompts (times beams) are continued one group after the other


_DECODING_RULES = {
    "max_new_tokens": ("a whole number, 0 or more", lambda number: operator.index(number) >= 0),
    "strategy": ("'sample', 'greedy' or 'beam'", ("sample", "greedy", "beam").__contains__),
    "temperature": (
        "finite and above 0; for the likeliest token use strategy='greedy'",
        lambda number: 0 < number < math.inf,
    ),
    "top_k": ("a whole number of at least 1", lambda number: operator.index(number) >= 1, None),
    "top_p": ("above 0 and at most 1", lambda probability: 0 < probability <= 1, None),
    "num_beams": ("a whole number of at least 1", lambda number: operator.index(number) >= 1),
    "length_penalty": (
        "between -50 and 50: it is the power of a length",
        lambda power: abs(power) <= 50,
    ),
    "seed": ("a whole number", lambda number: operator.index(number) is not None, None),
}


@dataclass(frozen=True)
class Generation:
    """What followed a prompt."""

    text: str  # continues the prompt, so in mid-sentence it starts with a small letter
    ids: list[int]  # an `<eos>` included
    logprob: float  # their sum in nats under the model itself, whatever filter chose them
    score: float  # logprob / length ** length_penalty, the length in tokens
    # Of beam search: all that was found, best first.
    beams: list["Generation"] = field(default_factory=list, repr=False)


@torch.inference_mode()
def generate(
    model: Decoder,
    tokenizer: WordTokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    strategy: str = "sample",
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    use_cache: bool = True,
    seed: int | None = None,
) -> list[Generation]:
    """Continue each prompt until `<eos>`, max_new_tokens, or the end of the model's context.

    Unknown words are read as `<unk>`. `<pad>`, `<sos>` and `<unk>` never come out.

    Args:
        prompts: a list of texts. The empty text starts a story.
        max_new_tokens: 0 gives empty texts.
        strategy: "greedy" takes the likeliest token; "sample" draws from softmax(logits /
            temperature) after both filters; "beam" keeps the num_beams likeliest beginnings (see
            `beam_search`).
        temperature: above 0; the smaller, the nearer to greedy.
        top_k: draw from this many likeliest tokens; None, or more than there are: from all.
        top_p: draw from the smallest set of tokens whose probability reaches this (Holtzman et
            al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1); None: from all.
        num_beams: how many beginnings beam search keeps.
        length_penalty: the power of the length in a beam's score.
        use_cache: whether to keep keys and values, or to read everything again at each step.
        seed: each prompt has a random stream of its own, from `seed` and its place in the list;
            None draws a fresh seed.

    Returns:
        A Generation for each prompt.

    Raises:
        ValueError: if a setting makes no sense, a prompt fills the context, or the tokenizer is
            another model's.
        FloatingPointError: if the model's scores are NaN, because its training went wrong.
    """
    prompts = texts_of(prompts, "prompts")
    check(locals(), _DECODING_RULES)
    require(num_beams == 1 or strategy == "beam", "num_beams must be 1, unless strategy='beam'")
    model.check_tokenizer(tokenizer)
    rows = [[tokenizer.sos_id, *tokenizer.encode(prompt)] for prompt in prompts]
    for index, ids in enumerate(rows):
        require(
            len(ids) < model.config.context_length,
            f"prompt {index} has {len(ids)} tokens with <sos> and leaves no room in a context "
            f"of {model.config.context_length}: shorten it",
        )
    keep_freed_memory()
    # The caller's random stream stays as it is.
    base = secrets.randbits(62) if seed is None else operator.index(seed)
    found, size = [], max(1, ROWS // num_beams)
    with evaluating(model), packed_weights(model, min(ROWS, len(rows) * num_beams)):
        for start in range(0, len(rows), size):
            group = rows[start : start + size]
            limits = [min(max_new_tokens, model.config.context_length - len(ids)) for ids in group]
            inputs = model, tokenizer, group, limits, use_cache
            if max_new_tokens == 0:
                found += [[([], 0.0)] for _ in group]
            elif strategy == "beam":
                found += beam_search(*inputs, num_beams, length_penalty)
            elif strategy == "greedy":
                found += token_by_token(*inputs, _likeliest)
            else:
                seeds = [base + 0x9E3779B97F4A7C15 * (start + i) for i in range(len(group))]
                streams = [torch.Generator().manual_seed(seed % 2**63) for seed in seeds]
                sampler = partial(_draw, streams, (temperature, top_k, top_p))
                found += token_by_token(*inputs, sampler)

    beams = [
        [as_generation(tokenizer, prompt, *one, length_penalty) for one in candidates]
        for prompt, candidates in zip(rows, found, strict=True)
    ]
    return [replace(best[0], beams=best) if strategy == "beam" else best[0] for best in beams]


def as_generation(
    tokenizer: WordTokenizer,
    prompt: list[int],
    ids: list[int],
    logprob: float,
    length_penalty: float = 1.0,
) -> Generation:
    """New ids after a prompt's, with their text and score."""
    score = logprob / max(1, len(ids)) ** length_penalty
    return Generation(tokenizer.decode(ids, after=prompt), ids, logprob, score)


def filtered_distribution(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """logits (…, V) -> the probabilities (…, V) that sampling draws from, 0 if filtered out."""
    # The best is taken off first, so that no temperature is too small; 0 / 0 cannot happen.
    best = logits.max(dim=-1, keepdim=True).values  # (…, 1)
    limits = torch.finfo(torch.float32)  # beyond which float32 makes 0 and infinity of a number
    scores = (logits - best) / min(max(temperature, limits.tiny), limits.max)  # (…, V)
    if top_k is not None and top_k < scores.shape[-1]:
        kept, places = scores.topk(top_k)  # (…, k) each
        scores = torch.full_like(scores, float("-inf")).scatter(-1, places, kept)  # (…, V)
    probabilities = scores.softmax(dim=-1)  # (…, V)
    if top_p is not None and top_p < 1:
        ranked, order = probabilities.sort(dim=-1, descending=True)  # (…, V) each
        before = ranked.cumsum(dim=-1) - ranked  # (…, V), probability of the likelier tokens
        ranked = ranked.masked_fill(before >= max(top_p, limits.tiny), 0.0)  # (…, V)
        ranked = ranked / ranked.sum(dim=-1, keepdim=True)  # (…, V)
        probabilities = torch.zeros_like(ranked).scatter(-1, order, ranked)  # (…, V)
    return probabilities


class Reader:
    """Reads rows of ids, then one more token a row and step; scores the token after the last.

    With a cache it reads each token once; without one, everything again at each step. That is the
    only difference.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: WordTokenizer,
        rows: list[list[int]],
        more: int,
        use_cache: bool,
    ):
        self.model, self.device = model, model.output.weight.device
        lengths = torch.tensor([len(row) for row in rows], device=self.device)  # (B,)
        longest = int(lengths.max())
        # Left-padded, so that all rows end, and grow, at the same place.
        # Not read yet; without a cache, all of them.
        self.ids = torch.tensor(
            [[tokenizer.pad_id] * (longest - len(row)) + row for row in rows], device=self.device
        )  # (B, S)
        self.padding = None if bool((lengths == longest).all()) else longest - lengths  # (B,)
        self.cache = (
            KVCache(model.config, len(rows), longest + more, self.device, model.output.weight.dtype)
            if use_cache
            else None
        )
        # Added to the scores, it keeps out what never comes out.
        self.bias = torch.zeros(model.config.vocab_size, device=self.device)  # (V,)
        self.bias[tokenizer.excluded_ids(model.config.vocab_size)] = -math.inf

    def logits(self) -> Tensor:
        """The model's scores (B, V) of the next token, in float32 at least."""
        logits = self.model(self.ids, self.cache, padding=self.padding, last_only=True)  # (B, V)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))  # (B, V)

    def read(self, tokens: Tensor, rows: Tensor | None = None) -> None:
        """Row i continues as row rows[i] did (None: as itself), with tokens[i] after it."""
        if rows is not None:
            self.ids = self.ids[rows]  # (B, S)
            self.padding = None if self.padding is None else self.padding[rows]
            if self.cache is not None:
                self.cache.reorder(rows)
        new = tokens[:, None]  # (B, 1)
        self.ids = new if self.cache is not None else torch.cat([self.ids, new], dim=1)  # (B, S)


def _likeliest(scores: Tensor, _: list[int]) -> Tensor:  # (B, V) -> (B,)
    # NumPy's is several times as fast as PyTorch's on a processor.
    return (
        torch.from_numpy(scores.numpy().argmax(axis=-1))
        if scores.device.type == "cpu"
        else scores.argmax(dim=-1)
    )


def _draw(
    streams: list[torch.Generator], filters: tuple, scores: Tensor, rows: list[int]
) -> Tensor:  # (B, V) -> (B,)
    """Draw with one uniform number a row, from the row's own stream."""
    cumulative = (
        filtered_distribution(scores, *filters)
        .to("cpu" if scores.device.type == "mps" else scores.device)  # MPS has no float64
        .double()
        .cumsum(dim=-1)
    )  # (B, V)
    drawn = [torch.rand(1, generator=streams[row], dtype=torch.float64) for row in rows]  # (1,)
    # The sum is 1 only up to rounding; `right` never lands on a token of probability 0.
    wanted = torch.stack(drawn).to(cumulative.device) * cumulative[:, -1:]  # (B, 1)
    found = torch.searchsorted(cumulative, wanted, right=True)  # (B, 1)
    return found[:, 0].clamp(max=scores.shape[-1] - 1).to(scores.device)  # (B,)


def token_by_token(
    model: Decoder,
    tokenizer: WordTokenizer,
    prompts: list[list[int]],
    limits: list[int],
    use_cache: bool,
    pick: Callable[[Tensor, list[int]], Tensor],
) -> list[list[tuple[list[int], float]]]:
    """For each prompt one continuation, as new ids and log-probability, like `beam_search`.

    A row leaves the batch when it ends.

    pick: scores (B, V) and the prompts' numbers -> tokens (B,).
    """
    new: list[list[int]] = [[] for _ in prompts]
    logprobs = [0.0] * len(prompts)
    active = list(range(len(prompts)))
    reader = Reader(model, tokenizer, prompts, max(limits), use_cache)
    while True:
        logits = reader.logits()  # (B, V)
        tokens = pick(logits + reader.bias, active)  # (B,)
        losses = F.cross_entropy(logits, tokens, reduction="none")  # (B,)
        going = []
        for place, (row, token, loss) in enumerate(
            zip(active, tokens.tolist(), losses.tolist(), strict=True)
        ):
            # A sampler finds no place in NaN, and takes the last token.
            require(loss < math.inf, _NAN, FloatingPointError)
            new[row].append(token)
            logprobs[row] -= loss
            if token != tokenizer.eos_id and len(new[row]) < limits[row]:
                going.append(place)
        if not going:
            return [[one] for one in zip(new, logprobs, strict=True)]
        if len(going) == len(active):
            reader.read(tokens)
        else:
            kept = torch.tensor(going, device=tokens.device)  # (B',)
            reader.read(tokens[kept], kept)
            active = [active[place] for place in going]


def beam_search(
    model: Decoder,
    tokenizer: WordTokenizer,
    prompts: list[list[int]],
    limits: list[int],
    use_cache: bool,
    width: int,
    length_penalty: float,
) -> list[list[tuple[list[int], float]]]:
    """For each prompt the best `width` continuations, best first, as new ids and log-probability.

    At each step every running beam is extended by every token, and the `width` likeliest
    extensions run on. One that ends in `<eos>` among the `width` best is set aside with its score,
    logprob / length ** length_penalty (Wu et al. 2016, "Google's Neural Machine Translation
    System", section 7, with a plain power). A prompt is done at its limit, where the running beams
    are scored too, or as soon as no running beam can reach the worst of `width` scores set aside.
    """
    finished: list[list[tuple[float, list[int], float]]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    reader = Reader(model, tokenizer, prompts, max(limits), use_cache)
    beams = [[([], 0.0)] for _ in active]  # running: new ids, log-probability
    while True:
        logits = reader.logits()  # (B, V), B = all running beams
        # At most `width` of a prompt's 2 · width likeliest extensions end.
        likeliest = (logits + reader.bias).topk(min(2 * width, logits.shape[-1]))  # (B, 2W) each
        # Faster than `logsumexp`: the loss of the best is that minus its score.
        losses = F.cross_entropy(logits, likeliest.indices[:, 0], reduction="none")  # (B,)
        scores = likeliest.values - likeliest.values[:, :1] - losses[:, None]  # (B, 2W)
        found = scores.cpu().double().numpy(), likeliest.indices.cpu().numpy()  # (B, 2W) each
        tokens, rows, kept, offset = [], [], [], 0
        for row, group in zip(active, beams, strict=True):
            running, ended = _extend(
                group,
                *(part[offset : offset + len(group)] for part in found),
                width,
                limits[row],
                tokenizer.eos_id,
            )
            finished[row] = sorted(
                finished[row]
                + [(total / len(ids) ** length_penalty, ids, total) for ids, total in ended],
                key=lambda hypothesis: -hypothesis[0],
            )[:width]
            if running and not _is_done(
                finished[row], running[0], limits[row], width, length_penalty
            ):
                running = in_place(running)
                kept.append((row, [(ids, total) for ids, total, _ in running]))
                tokens += [ids[-1] for ids, _, _ in running]
                rows += [offset + beam for _, _, beam in running]
            offset += len(group)
        if not kept:
            return [[(ids, total) for _, ids, total in best] or [([], 0.0)] for best in finished]
        active, beams = [row for row, _ in kept], [group for _, group in kept]
        reader.read(*(torch.tensor(numbers, device=logits.device) for numbers in (tokens, rows)))


def _extend(
    group: list[tuple[list[int], float]],
    scores: np.ndarray,
    tokens: np.ndarray,
    width: int,
    limit: int,
    eos_id: int,
) -> tuple[list[tuple[list[int], float, int]], list[tuple[list[int], float]]]:
    """One prompt's beams, a token longer: those that run on (and which beam each extends), and
    those that end. scores, tokens: each beam's likeliest tokens and their log-probabilities,
    (beams, 2W).
    """
    require(not np.isnan(scores[:, 0]).any(), _NAN, FloatingPointError)
    totals = scores + np.array([[logprob] for _, logprob in group])  # (beams, 2W)
    running, ended = [], []
    order = np.argsort(-totals, axis=None, kind="stable")[: 2 * width]  # (2W,)
    order = order[totals.flat[order] > -math.inf]  # else of tokens that never come out
    for rank, place in enumerate(order.tolist()):
        beam, column = divmod(place, scores.shape[1])
        total, ids = totals[beam, column].item(), [*group[beam][0], tokens[beam, column].item()]
        if ids[-1] == eos_id or len(ids) == limit:
            if rank < width:
                ended.append((ids, total))
        elif len(running) < width:
            running.append((ids, total, beam))
    return running, ended


def _is_done(
    finished: list, best_running: tuple, limit: int, width: int, length_penalty: float
) -> bool:
    """No running beam can beat what is set aside: its log-probability can only fall."""
    length = limit if length_penalty > 0 else len(best_running[0])  # the one that helps it most
    best = best_running[1] / length**length_penalty
    return len(finished) == width and best <= finished[-1][0]


def in_place(running: list[tuple]) -> list[tuple]:
    """Order beams so that as many as possible stay in the cache's row that they continue.

    A beam's third part is that row.
    """
    placed = {beam[2]: beam for beam in reversed(running) if beam[2] < len(running)}
    rest = (beam for beam in running if placed.get(beam[2]) is not beam)
    return [placed[row] if row in placed else next(rest) for row in range(len(running))]
