"""Which tricks help a small model: everything fixed but one, on stories that nobody tuned on.

    python report/ablations.py FOLDER               every trick, three seeds -> ablations.json
    python report/ablations.py FOLDER --jobs 8      eight runs at a time, for a GPU
    python report/ablations.py FOLDER --time        seconds a step of each, in turns, here

FOLDER holds TinyStories as train.txt and validation.txt. The model, the first 10,000 stories and
the number of steps are those of the comparison protocol. The stories after them are the development
set, on which choices are made; validation.txt is measured at the end of each run for the figures
that are reported. A run that is there already is not made again: delete the file to start anew.
"""

import argparse
import functools
import json
import math
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as F
from timing import alone, machine, save

from helpers.loss import mean_loss
from helpers.muon import Muon
from helpers.recipe import new_model
from helpers.stories import Stories, load_stories
from helpers.support.hardware import pick_device, pick_precision
from helpers.tokenizer import WordTokenizer
from helpers.training import (
    TrainingConfig,
    encode_stories,
    epoch_order,
    learning_rate_at,
    optimizer_step,
)
from helpers.vectors import train_vectors

TRAIN = 10_000  # stories; those after them are the development set
STEPS, SEEDS = 300, 3


@dataclass(frozen=True)
class Trick:
    """What differs from the default."""

    config: dict = field(default_factory=dict)  # settings of TrainingConfig
    start: dict | None = field(default_factory=dict)  # of `new_model`; None: random vectors
    zero: bool = False  # whether each block's output matrices start at zero
    rates: dict = field(default_factory=dict)  # the rates of parts of the model, as multiples
    muon: float = 0.0  # the blocks' matrices' rate with Muon, as a multiple; 0: AdamW
    smoothing: float = 0.0  # of the labels
    average: float = 0.0  # share of the run, at its end, whose weights are averaged
    small_first: bool = False  # half of the stories in batches of half the size, before the others
    extra: dict = field(default_factory=dict)


TRICKS = {
    "default": Trick(),
    "trapezoid": Trick({"schedule": "trapezoid"}),
}


def make_optimizer(model, config: TrainingConfig, trick: Trick) -> torch.optim.Optimizer:
    groups = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        matrix = parameter.dim() == 2 and not name.startswith("embedding")
        orthogonal = bool(trick.muon and matrix and name.startswith("blocks"))
        part = next((part for part in trick.rates if name.startswith(part)), None)
        groups.append(
            {
                "params": [parameter],
                "weight_decay": config.weight_decay * matrix,
                "share": trick.muon if orthogonal else trick.rates.get(part, 1.0),
                "orthogonal": orthogonal,
                "parts": 3 if "qkv" in name and not trick.extra.get("joint") else 1,
                "iterations": trick.extra.get("iterations", 5),
            }
        )
    return Muon(groups, lr=config.learning_rate, betas=config.betas, fused=True)


class Smoothed:
    """A model whose loss is that of smoothed labels, as `optimizer_step` calls it."""

    def __init__(self, model, smoothing: float):
        self.model, self.smoothing = model, smoothing
        self.parameters = model.parameters

    def __call__(self, ids, targets):  # (B, T), (B, T)
        logits = self.model(ids).flatten(0, 1)  # (B · T, V)
        how = {"ignore_index": 0, "reduction": "sum", "label_smoothing": self.smoothing}
        return F.cross_entropy(logits, targets.flatten(), **how), None


def batches(stories: int, steps: int, seed: int, small_first: bool):
    """The rows of each batch."""
    order = torch.cat([epoch_order(stories, seed, epoch) for epoch in range(steps * 32 // stories + 1)])
    steps_per_epoch = math.ceil(stories / 32)
    order = torch.cat([epoch_order(stories, seed, e) for e in range(math.ceil(steps / steps_per_epoch))])
    ends = []
    rows = []
    for epoch in range(math.ceil(steps / steps_per_epoch)):
        rows += epoch_order(stories, seed, epoch).split(32)
    rows = rows[:steps]
    if small_first:
        half = steps // 2
        rows = [part for batch in rows[:half] for part in batch.split(16)] + rows[half:]
    return rows


def run(trick: Trick, seed: int, steps: int, data: dict, device: str, precision: str) -> dict:
    """Train, and measure the loss on the development set and on validation.txt."""
    config = TrainingConfig(overwrite_eos=True, seed=seed, **trick.config)
    vectors = data["vectors"] if trick.start is not None else None
    model = new_model(data["stories"], data["tokenizer"], vectors, seed, **trick.start or {})
    if trick.zero:
        with torch.no_grad():
            for block in model.blocks:
                block.attention.output.weight.zero_()
                block.feed_forward.contract.weight.zero_()
    if config.dropout is not None:
        model.set_dropout(config.dropout)
    model.to(device).train()
    optimizer = make_optimizer(model, config, trick)
    trained = Smoothed(model, trick.smoothing) if trick.smoothing else model
    rows = batches(len(data["train"]), steps, seed, trick.small_first)
    mean = None
    torch.manual_seed(seed)
    started = time.perf_counter()
    for step, row in enumerate(rows):
        ids = data["train"][row].long().to(device)
        rate = learning_rate_at(step, len(rows), config)
        optimizer_step(trained, optimizer, ids, rate, config, precision)
        if step >= len(rows) * (1 - trick.average):
            now = [p.detach().clone() for p in model.parameters()]
            count = 1 if mean is None else count + 1
            mean = now if mean is None else [m.lerp(p, 1 / count) for m, p in zip(mean, now, strict=True)]
    seconds = time.perf_counter() - started
    if mean:
        with torch.no_grad():
            for p, m in zip(model.parameters(), mean, strict=True):
                p.copy_(m)
    model.eval()
    return {
        part: mean_loss(model, data[part], precision=precision, batch_size=256)
        for part in ("development", "validation")
    } | {"seconds": seconds, "steps": len(rows)}
