"""Find the bug: a tiny decoder made of six parts, and six diagnostics of any such decoder.

A part that the reader was given has a bug; BLIND says which diagnostics cannot see it, and why.

Shape comments name the sizes: B stories, H heads, T tokens, S keys, d head width, D model width,
V vocabulary.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.model import sinusoidal_positions
from helpers.tokenizer import WordTokenizer

WIDTH, HEADS, LAYERS, LENGTH = 24, 3, 1, 17
RATE = 2e-2
CLIP_NORM = 0.5
STEPS = 100

# Those of owls are longer, so that the others are padded.
STORIES = [
    f"{hero} had a {animal}." + " It sang all day and all night. The end." * (animal == "owl")
    for hero in ("Mia", "Tom", "Ada", "Ben")
    for animal in ("cat", "dog", "owl")
]


# The six parts as they should be.
class TiedWords(nn.Module):
    def __init__(self, vocabulary: int, width: int):
        super().__init__()
        self.vectors = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.vectors.weight, std=0.02)

    def read(self, ids: Tensor) -> Tensor:  # (B, T) -> (B, T, D)
        return self.vectors(ids) * self.vectors.embedding_dim**0.5

    def score(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, V)
        return x @ self.vectors.weight.T


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q (B, H, T, d), k and v (B, H, S, d) -> (B, T, D)."""
    T, S = q.shape[2], k.shape[2]
    future = torch.ones(T, S, dtype=torch.bool).triu(S - T + 1)  # (T, S)
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(future, -math.inf)  # (B, H, T, S)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)  # (B, T, D)


def read(model: nn.Module, ids: Tensor, cache: "Cache") -> Tensor:
    """Logits (B, T, V) of ids (B, T), which follow what the cache holds."""
    start = cache.length
    x = model.words.read(ids) + model.positions[start : start + ids.shape[1]]  # (B, T, D)
    for layer, block in enumerate(model.blocks):
        x = block(x, partial(cache.append, layer))  # (B, T, D)
    return model.words.score(model.norm(x))  # (B, T, V)


def story_loss(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of ids (B, T): the sum of the losses in nats, and the number of targets."""
    targets = ids[:, 1:]  # (B, T-1)
    logits = model(ids[:, :-1])  # (B, T-1, V)
    total = F.cross_entropy(logits.mT, targets, ignore_index=0, reduction="sum")  # ()
    return total, (targets != 0).sum()  # (), ()


def gradient(
    model: nn.Module, batch: Tensor, size: int, loss_of: Callable, clip_norm: float
) -> None:
    """Leave the batch's clipped gradient in .grad, reading `size` stories at a time."""
    model.zero_grad()
    number = (batch[:, 1:] != 0).sum()  # ()
    for part in batch.split(size):
        (loss_of(model, part)[0] / number).backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)


def make_optimizer(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate)


@dataclass(frozen=True)
class Parts:
    """Whatever is not given is as it should be."""

    TiedWords: type = TiedWords
    attend: Callable = attend
    read: Callable = read
    story_loss: Callable = story_loss
    gradient: Callable = gradient
    make_optimizer: Callable = make_optimizer


RIGHT = Parts()


class Cache:
    """Keys and values of every layer, (B, H, S, d) each."""

    def __init__(self):
        self.held, self.length = {}, 0

    def append(self, layer: int, *new: Tensor) -> tuple[Tensor, Tensor]:
        """New keys and values (B, H, T, d) -> all of them (B, H, S, d)."""
        old = self.held.get(layer, tuple(t[:, :, :0] for t in new))
        self.held[layer] = tuple(torch.cat(pair, 2) for pair in zip(old, new, strict=True))
        self.length = self.held[layer][0].shape[2]
        return self.held[layer]


class Block(nn.Module):
    def __init__(self, attend: Callable):
        super().__init__()
        self.attend = attend
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.output = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.feed_forward = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor, remember: Callable) -> Tensor:  # (B, T, D)
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, HEADS, -1))  # (B, T, 3, H, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, d) each
        x = x + self.output(self.attend(q, *remember(k, v)))  # (B, T, D)
        return x + self.feed_forward(self.feed_forward_norm(x))  # (B, T, D)


class TinyDecoder(nn.Module):
    """Two blocks of width 24 over the vocabulary of the tiny stories."""

    def __init__(self, parts: Parts):
        super().__init__()
        self.parts = parts
        self.words = parts.TiedWords(len(tokenizer()), WIDTH)
        self.register_buffer("positions", sinusoidal_positions(LENGTH, WIDTH))  # (T, D)
        self.blocks = nn.ModuleList(Block(parts.attend) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids: Tensor) -> Tensor:  # (B, T) -> (B, T, V)
        return self.parts.read(self, ids, Cache())


@cache
def tokenizer() -> WordTokenizer:
    return WordTokenizer.train(STORIES)


@cache
def stories() -> Tensor:
    """All twelve, (N, T)."""
    return torch.tensor([tokenizer().encode_story(text, LENGTH) for text in STORIES])


@cache
def floor_of_stories() -> float:
    """Nats per token: no model that reads from left to right has a lower mean loss on them."""
    rows = [row[: row.index(0)] if 0 in row else row for row in stories().tolist()]
    seen = Counter(tuple(row[:end]) for row in rows for end in range(1, len(row) + 1))
    losses = [
        math.log(seen[tuple(row[:end])] / seen[tuple(row[: end + 1])])
        for row in rows
        for end in range(1, len(row))
    ]
    return sum(losses) / len(losses)


class Finding(NamedTuple):
    caught: bool
    shown: str  # what the diagnostic measured, in a sentence


def new_model(parts: Parts = RIGHT, dtype: torch.dtype = torch.float32) -> TinyDecoder:
    torch.manual_seed(0)
    return TinyDecoder(parts).to(dtype)


def _mean_loss(parts: Parts, model: TinyDecoder) -> float:
    with torch.no_grad():
        total, number = parts.story_loss(model, stories())  # (), ()
    return float(total / number)


@lru_cache(maxsize=1)  # two diagnostics ask for the same run
def after_training(parts: Parts) -> float:
    """The loss after STEPS steps on all stories at once."""
    model = new_model(parts)
    optimizer = parts.make_optimizer(model, RATE)
    for step in range(STEPS):
        parts.gradient(model, stories(), len(stories()), parts.story_loss, CLIP_NORM)
        for group in optimizer.param_groups:  # warm-up, then a line to zero
            group["lr"] = RATE * min((step + 1) / 10, 1 - step / STEPS)
        optimizer.step()
    return _mean_loss(parts, model)


def initial_loss(parts: Parts) -> Finding:
    loss, even = _mean_loss(parts, new_model(parts)), math.log(len(tokenizer()))
    return Finding(
        abs(loss - even) > 1,
        f"before the first step the loss is ≈{loss:.2f} nats, and ln V is {even:.2f}",
    )


def batch_by_heart(parts: Parts) -> Finding:
    loss, least = after_training(parts), floor_of_stories()
    return Finding(
        loss > least + 0.3,
        f"after {STEPS} steps on the same twelve stories the loss is ≈{loss:.2f} nats, and the "
        f"lowest possible is {least:.2f}",
    )


@torch.no_grad()
def causality(parts: Parts) -> Finding:
    model, ids = new_model(parts, torch.float64), stories().clone()
    before = model(ids)  # (B, T, V)
    ids[:, 7] = ids[:, 7] % 9 + 4
    off = (model(ids) - before)[:, :7].abs().max().item()
    return Finding(
        off > 1e-9,
        f"when the word at position 7 changes, logits before it change by up to ≈{off:.1g}",
    )


@torch.no_grad()
def cache_equality(parts: Parts) -> Finding:
    model, ids, held = new_model(parts, torch.float64), stories(), Cache()
    steps = [ids[:, :6], *ids[:, 6:].split(1, dim=1)]  # prefill, then token by token
    stepwise = torch.cat([parts.read(model, part, held) for part in steps], dim=1)  # (B, T, V)
    off = (stepwise - model(ids)).abs().max().item()
    return Finding(off > 1e-9, f"logits with and without the cache differ by up to ≈{off:.1g}")


def split_gradient(parts: Parts) -> Finding:
    model, ids, found = new_model(parts, torch.float64), stories(), []
    for size in (12, 5):
        parts.gradient(model, ids, size, parts.story_loss, CLIP_NORM)
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]).clone())  # (P,)
    whole, split = found
    off = ((split - whole).abs().max() / whole.abs().max()).item()
    return Finding(
        off > 1e-9,
        f"twelve stories at once and five at a time give gradients that differ by ≈{off:.1g} of "
        "the largest",
    )


def floor(parts: Parts) -> Finding:
    loss, least = after_training(parts), floor_of_stories()
    return Finding(
        loss < least - 0.02,
        f"after {STEPS} steps on the same twelve stories the loss is ≈{loss:.2f} nats, and the "
        f"lowest possible is {least:.2f}",
    )


DIAGNOSTICS = {
    "initial loss": initial_loss,
    "batch by heart": batch_by_heart,
    "causality": causality,
    "cache equality": cache_equality,
    "split gradient": split_gradient,
    "floor": floor,
}

# {program: its name among the Parts}
PROGRAMS = {
    "tied words": "TiedWords",
    "optimizer": "make_optimizer",
    "attention": "attend",
    "reading": "read",
    "gradient": "gradient",
    "loss": "story_loss",
}

# {program: {diagnostic: why it cannot see the bug}}; those that are missing see it.
_ONE_PASS = (
    "it reads each text in one pass, from an empty cache, where this program does nothing wrong"
)
_READS_LOGITS = "it compares logits, and this program has no part in them"
BLIND = {
    "tied words": {
        "batch by heart": "it looks at the loss after training, which has repaired the fault",
        "causality": "each word is scored from its own position, so no later one can get in",
        "cache equality": "a word's vector and its scores are the same with and without a cache",
        "split gradient": "the words are read and scored in the same way, at once or in parts",
        "floor": "it notices a loss that is too low, and this fault cannot lower it",
    },
    "optimizer": {
        "initial loss": "the optimizer has not moved anything before the first step",
        "causality": "which words a position sees does not depend on how parameters are moved",
        "cache equality": "both ways use the same parameters, whoever moves them",
        "split gradient": "it compares gradients before the optimizer reads them",
        "floor": "it notices a loss that is too low, and no optimizer gets below the floor",
    },
    "attention": {
        "initial loss": "an untrained model is nearly indifferent, whatever its attention mixes",
        "batch by heart": "it asks whether the stories can be learned, and with this program they "
        "can",
        "split gradient": "each story is read by itself, whichever others are in its mini-batch",
    },
    "reading": {
        "initial loss": _ONE_PASS,
        "batch by heart": _ONE_PASS,
        "causality": _ONE_PASS,
        "split gradient": _ONE_PASS,
        "floor": _ONE_PASS,
    },
    "gradient": {
        "initial loss": "there has been no gradient before the first step",
        "batch by heart": "all stories are read at once there, where this program does nothing "
        "wrong",
        "causality": _READS_LOGITS,
        "cache equality": _READS_LOGITS,
        "floor": "it notices a loss that is too low, and no gradient leads below the floor",
    },
    "loss": {
        "initial loss": "before training each target costs about ln V, so any mean of them does",
        "batch by heart": "it asks whether the loss gets low enough, and with this program it does",
        "causality": _READS_LOGITS,
        "cache equality": _READS_LOGITS,
        "split gradient": "the same fault is in the whole and in the parts, so they agree",
    },
}
