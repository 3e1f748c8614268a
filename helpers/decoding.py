"""Text from a prompt: greedy, sampled, or by beam search, each with or without a cache of keys and
values.

Shape comments name the sizes: B rows, S tokens, V vocabulary, P prompts, W beams.
"""

import math
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from helpers.memory import keep_freed_memory
from helpers.model import Decoder, KVCache
from helpers.tokenizer import WordTokenizer

ROWS = 256  # read at once; more prompts (times beams) are continued one group after the other


@dataclass(frozen=True)
class Generation:
    """What followed a prompt: its text, its token ids (an `<eos>` included), and their summed
    log-probability in nats under the model itself, whatever temperature or filter chose them.

    text: as it goes on from the prompt, so in mid-sentence it starts with a small letter. score:
    logprob / length ** length_penalty, the length in tokens. beams: of beam search, all that was
    found, best first.
    """

    text: str
    ids: list[int]
    logprob: float
    score: float
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

    strategy "greedy" takes the likeliest token; "sample" draws from softmax(logits / temperature),
    kept to the top_k likeliest tokens and to the smallest set whose probability reaches top_p
    (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1); "beam"
    keeps the num_beams likeliest beginnings (see `beam_search`). The empty prompt starts a story;
    unknown words are read as `<unk>`. `<pad>`, `<sos>` and `<unk>` never come out. Each prompt has
    a random stream of its own, from `seed` and its place in the list; None draws a fresh seed.

    top_k and num_beams may exceed the vocabulary: then nothing is cut off, and all beginnings are
    kept. max_new_tokens=0 gives empty texts, no prompts an empty list. The smaller the temperature,
    the nearer to greedy; all above 0 work. The smallest top_p leaves the likeliest token.

    Raises ValueError where a setting makes no sense, a prompt fills the context, or the tokenizer
    is another model's, FloatingPointError where the model's scores are not numbers (NaN), as those
    of a model whose training went wrong.
    """
    if isinstance(prompts, str):
        raise ValueError("prompts is one string: give a list of prompts")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompt {index} is {prompt!r}: give strings")
    numbers = {
        "max_new_tokens": max_new_tokens,
        "num_beams": num_beams,
        "top_k": top_k,
        "seed": seed,
    }
    for name, number in numbers.items():
        if not (hasattr(number, "__index__") or (number is None and name in ("top_k", "seed"))):
            raise ValueError(f"{name}={number!r} must be a whole number")
    if strategy not in ("sample", "greedy", "beam"):
        raise ValueError(f"strategy={strategy!r}: choose 'sample', 'greedy' or 'beam'")
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature={temperature} must be finite and above 0; for the likeliest token use "
            "strategy='greedy'"
        )
    if (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise ValueError(
            f"top_k={top_k}, top_p={top_p}: top_k must be at least 1, top_p above 0 and at most 1"
        )
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens} must not be negative")
    if num_beams < 1 or (num_beams > 1 and strategy != "beam"):
        raise ValueError(
            f"num_beams={num_beams} with strategy={strategy!r}: at least 1, and more for 'beam' "
            "only"
        )
    if not abs(length_penalty) <= 50:
        raise ValueError(
            f"length_penalty={length_penalty} must be between -50 and 50: it is the power of a "
            "length"
        )
    model.config.check_vocabulary(len(tokenizer))
    rows = [[tokenizer.sos_id, *tokenizer.encode(prompt)] for prompt in prompts]
    for index, ids in enumerate(rows):
        if len(ids) >= model.config.context_length:
            raise ValueError(
                f"prompt {index} has {len(ids)} tokens with <sos> and leaves no room in a context "
                f"of {model.config.context_length}: shorten it"
            )
    keep_freed_memory()
    # the caller's random stream stays as it is
    base = secrets.randbits(62) if seed is None else seed
    was_training = model.training
    model.eval()
    found = []
    with packed_weights(model), ExitStack() as at_the_end:
        at_the_end.callback(model.train, was_training)  # after an error too
        for start in range(0, len(rows), max(1, ROWS // num_beams)):
            group = rows[start : start + max(1, ROWS // num_beams)]
            limits = [min(max_new_tokens, model.config.context_length - len(ids)) for ids in group]
            if strategy == "beam":
                found += beam_search(
                    model, tokenizer, group, limits, num_beams, length_penalty, use_cache
                )
                continue
            pick = (
                _Greedy()
                if strategy == "greedy"
                else _Sampler(base, start, len(group), temperature, top_k, top_p)
            )
            found += [
                [one] for one in token_by_token(model, tokenizer, group, limits, pick, use_cache)
            ]

    results = []
    for prompt, candidates in zip(rows, found, strict=True):
        beams = []
        for ids, logprob in candidates:
            score = logprob / max(1, len(ids)) ** length_penalty
            beams.append(Generation(tokenizer.decode(ids, after=prompt), ids, logprob, score))
        results.append(replace(beams[0], beams=beams) if strategy == "beam" else beams[0])
    return results


@contextmanager
def packed_weights(model: nn.Module) -> Iterator[None]:
    """Within, each `nn.Linear` of a model on a processor multiplies by a copy of its weights,
    packed by oneDNN.

    A step of decoding multiplies few rows by every weight, so reading the weights is most of its
    time. PyTorch's usual product of float32 sorts them anew each time; packed once, they are read
    as they lie. The products are the same up to rounding. On other devices, in float64, and where
    PyTorch has no oneDNN, nothing changes. Not for training: the copy does not follow the weights,
    and has no gradient.
    """
    layers = [
        layer for layer in model.modules() if isinstance(layer, nn.Linear) and _packs(layer.weight)
    ]
    for layer in layers:
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
        layer.forward = partial(_packed_linear, packed, layer.bias)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # that of the class again


def _packs(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32


def _packed_linear(
    weight: Tensor, bias: Tensor | None, x: Tensor
) -> Tensor:  # x (…, D) -> (…, out)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def filtered_distribution(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """logits (…, V) -> the probabilities (…, V) that sampling draws from; what is filtered out has
    probability 0.
    """
    best = logits.max(
        dim=-1, keepdim=True
    ).values  # (…, 1), taken off first: no temperature is too small
    least, most = (
        torch.finfo(torch.float32).tiny,
        torch.finfo(torch.float32).max,
    )  # or float32 makes them 0 and inf
    scores = (logits - best) / min(max(temperature, least), most)  # (…, V), the best at 0: no 0 / 0
    if top_k is not None and top_k < scores.shape[-1]:
        kept, places = scores.topk(top_k)  # (…, k) each
        scores = torch.full_like(scores, float("-inf")).scatter(-1, places, kept)  # (…, V)
    probabilities = scores.softmax(dim=-1)  # (…, V)
    if top_p is not None and top_p < 1:
        ranked, order = probabilities.sort(dim=-1, descending=True)  # (…, V) each
        before = ranked.cumsum(dim=-1) - ranked  # (…, V), probability of the likelier tokens
        ranked = ranked.masked_fill(before >= max(top_p, least), 0.0)  # (…, V)
        probabilities = torch.zeros_like(ranked).scatter(
            -1, order, ranked / ranked.sum(dim=-1, keepdim=True)
        )  # (…, V)
    return probabilities


class _Reader:
    """Reads rows of ids, then one more token a row and step; scores the token after the last. With
    a cache it reads each token once, without one everything again at each step: that is the only
    difference.
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
        padded = [[tokenizer.pad_id] * (longest - len(row)) + row for row in rows]
        self.ids = torch.tensor(
            padded, device=self.device
        )  # (B, S): not read yet, or all of them without a cache
        self.padding = None if bool((lengths == longest).all()) else longest - lengths  # (B,)
        self.cache = None
        if use_cache:
            dtype = model.output.weight.dtype
            self.cache = KVCache(model.config, len(rows), longest + more, self.device, dtype)
        # The control words but <eos>, and rows of the table without a word.
        banned = [
            tokenizer.pad_id,
            tokenizer.sos_id,
            tokenizer.unk_id,
            *range(len(tokenizer), model.config.vocab_size),
        ]
        self.banned = torch.tensor(banned, device=self.device)  # (·,)

    def scores(self) -> Tensor:
        """Log-probabilities (B, V) of the next token under the model; -inf for tokens that may not
        come out.
        """
        x, _ = self.model.hidden(self.ids, self.cache, padding=self.padding)  # (B, S, D)
        logits = self.model.output(x[:, -1])  # (B, V)
        scores = torch.log_softmax(
            logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32)
        )  # (B, V)
        return scores.index_fill_(-1, self.banned, float("-inf"))  # (B, V)

    def read(self, tokens: Tensor, rows: Tensor | None = None) -> None:
        """Row i goes on as row rows[i] did (None: as itself), with tokens[i] after it."""
        if rows is not None:
            self.ids = self.ids[rows]  # (B, S)
            self.padding = None if self.padding is None else self.padding[rows]
            if self.cache is not None:
                self.cache.reorder(rows)
        tokens = tokens[:, None]  # (B, 1)
        self.ids = (
            tokens if self.cache is not None else torch.cat([self.ids, tokens], dim=1)
        )  # (B, 1) or (B, S + 1)


class _Greedy:
    def __call__(self, scores: Tensor, rows: list[int]) -> Tensor:  # (B, V) -> (B,)
        return scores.argmax(dim=-1)


class _Sampler:
    """Draws by the inverse of the cumulative distribution: one uniform number a row, from the row's
    own stream.
    """

    def __init__(self, base: int, start: int, count: int, *filters):
        places = range(start, start + count)
        self.streams = [
            torch.Generator().manual_seed((base + 0x9E3779B97F4A7C15 * i) % 2**63) for i in places
        ]
        self.filters = filters

    def __call__(self, scores: Tensor, rows: list[int]) -> Tensor:  # (B, V) -> (B,)
        cumulative = filtered_distribution(scores, *self.filters).double().cumsum(dim=-1)  # (B, V)
        drawn = torch.stack(
            [torch.rand(1, generator=self.streams[row], dtype=torch.float64) for row in rows]
        )  # (B, 1)
        # The sum is 1 only up to rounding; `right` never lands on a token of probability 0.
        wanted = drawn.to(scores.device) * cumulative[:, -1:]  # (B, 1)
        return torch.searchsorted(cumulative, wanted, right=True)[:, 0].clamp(
            max=scores.shape[-1] - 1
        )  # (B,)


def _not_numbers() -> FloatingPointError:
    return FloatingPointError(
        "the model's scores are NaN: load a checkpoint whose weights are finite, or train again"
    )


def token_by_token(
    model: Decoder,
    tokenizer: WordTokenizer,
    prompts: list[list[int]],
    limits: list[int],
    pick,
    use_cache: bool,
) -> list[tuple[list[int], float]]:
    """New ids and their log-probability for each prompt, token by token; a row leaves the batch
    when it ends.
    """
    new: list[list[int]] = [[] for _ in prompts]
    logprobs = [0.0] * len(prompts)
    active = [row for row, limit in enumerate(limits) if limit > 0]
    if not active:
        return list(zip(new, logprobs, strict=True))
    reader = _Reader(model, tokenizer, [prompts[row] for row in active], max(limits), use_cache)
    while True:
        scores = reader.scores()  # (B, V)
        tokens = pick(scores, active)  # (B,)
        chosen = scores.gather(-1, tokens[:, None])[:, 0]  # (B,)
        going = []
        for place, (row, token, logprob) in enumerate(
            zip(active, tokens.tolist(), chosen.tolist(), strict=True)
        ):
            if not logprob > -math.inf:  # a sampler finds no place in NaN, and takes the last token
                raise _not_numbers()
            new[row].append(token)
            logprobs[row] += logprob
            if token != tokenizer.eos_id and len(new[row]) < limits[row]:
                going.append(place)
        if not going:
            return list(zip(new, logprobs, strict=True))
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
    width: int,
    length_penalty: float,
    use_cache: bool,
) -> list[list[tuple[list[int], float]]]:
    """For each prompt the best `width` continuations, best first, as new ids and log-probability.

    At each step every running beam is extended by every token, and the `width` likeliest extensions
    run on. One that ends in `<eos>` among the `width` best is set aside with its score, logprob /
    length ** length_penalty (Wu et al. 2016, "Google's Neural Machine Translation System", section
    7, with a plain power). A prompt is done when no running beam can reach the worst of `width`
    scores set aside any more, or at its limit, where the running beams are scored too.
    """
    finished: list[list[tuple[float, list[int], float]]] = [[] for _ in prompts]
    active = [row for row, limit in enumerate(limits) if limit > 0]
    if not active:
        return [[([], 0.0)] for _ in prompts]
    reader = _Reader(model, tokenizer, [prompts[row] for row in active], max(limits), use_cache)
    beams = [[([], 0.0)] for _ in active]  # running: new ids, log-probability
    while True:
        scores = reader.scores()  # (B, V), B = all running beams
        so_far = [[logprob] for group in beams for _, logprob in group]
        totals = scores + torch.tensor(so_far, device=scores.device, dtype=scores.dtype)  # (B, V)
        tokens, rows, kept, offset = [], [], [], 0
        for place, row in enumerate(active):
            group = beams[place]
            here = totals[offset : offset + len(group)].flatten()  # (W·V,)
            likeliest = _top(here, min(2 * width, len(here)))  # at most `width` of them end
            running = []
            for rank, (total, at) in enumerate(
                zip(*(found.tolist() for found in likeliest), strict=True)
            ):
                beam, token = divmod(at, scores.shape[-1])
                ids = [*group[beam][0], token]
                if math.isnan(total):
                    raise _not_numbers()
                if total == float("-inf"):
                    break  # only tokens that may not come out are left
                if token == tokenizer.eos_id or len(ids) == limits[row]:
                    if rank < width:
                        finished[row].append((total / len(ids) ** length_penalty, ids, total))
                elif len(running) < width:
                    running.append((ids, total, beam))
            finished[row] = sorted(finished[row], key=lambda hypothesis: -hypothesis[0])[:width]
            if running and not _is_done(
                finished[row], running[0], limits[row], width, length_penalty
            ):
                running = _in_place(running)
                kept.append((row, [(ids, total) for ids, total, _ in running]))
                tokens += [ids[-1] for ids, _, _ in running]
                rows += [offset + beam for _, _, beam in running]
            offset += len(group)
        if not kept:
            return [
                [(ids, logprob) for _, ids, logprob in group] or [([], 0.0)] for group in finished
            ]
        active, beams = [row for row, _ in kept], [group for _, group in kept]
        reader.read(
            torch.tensor(tokens, device=scores.device), torch.tensor(rows, device=scores.device)
        )


def _top(values: Tensor, k: int, block: int = 100) -> tuple[Tensor, Tensor]:
    """The k largest of values (N,), largest first, and their places: `topk`, which would look at
    each value by itself.

    Among the k largest, each is in one of the k blocks with the largest maxima.
    """
    whole = len(values) // block * block
    if whole < k * block:
        return values.topk(k)
    blocks = values[:whole].view(-1, block)  # (N / block, block)
    best = blocks.amax(dim=-1).topk(k).indices  # (k,)
    places = torch.cat(
        [
            (
                best[:, None] * block + torch.arange(block, device=values.device)
            ).flatten(),  # (k · block,)
            torch.arange(
                whole, len(values), device=values.device
            ),  # what is left of the last block
        ]
    )
    found = values[places].topk(k)
    return found.values, places[found.indices]


def _in_place(running: list) -> list:
    """The beams in an order in which as many as can be stay in the row of the cache that they go on
    from.
    """
    placed, rest = {}, []
    for beam in running:
        if beam[2] < len(running) and beam[2] not in placed:
            placed[beam[2]] = beam
        else:
            rest.append(beam)
    return [placed[row] if row in placed else rest.pop(0) for row in range(len(running))]


def _is_done(
    finished: list, best_running: tuple, limit: int, width: int, length_penalty: float
) -> bool:
    """No running beam can beat what is set aside: its log-probability only falls, and a length
    helps as much as it can.
    """
    if len(finished) < width:
        return False
    ids, total, _ = best_running
    length = limit if length_penalty > 0 else len(ids)
    return total / length**length_penalty <= finished[-1][0]
