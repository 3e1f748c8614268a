"""Which tricks help a small model: one thing changed at a time, on stories that nobody tuned on.

    python report/ablations.py FOLDER             every trick, three seeds
    python report/ablations.py FOLDER --jobs 12   so many runs at a time, for a GPU
    python report/ablations.py FOLDER --time      what a step of each costs on this processor

FOLDER holds TinyStories as train.txt and validation.txt. Model, first 10,000 stories, 300 steps:
all is fixed but the trick. Choices are made on the development set, the training stories after
those; validation.txt is measured for the figures that are reported. The tricks are tried in turns,
each with the same three seeds. figures/tinystories/ablations.json is written after each run, and a
run that it holds is not made again.
"""

import argparse
import functools
import os
import sys
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from helpers import muon  # noqa: E402
from helpers.loss import mean_loss  # noqa: E402
from helpers.model import Decoder, ModelConfig  # noqa: E402
from helpers.notebook import FigureFolder, load_numbers  # noqa: E402
from helpers.recipe import VALIDATION, made_from, new_model  # noqa: E402
from helpers.stories import Stories, load_stories  # noqa: E402
from helpers.support.hardware import pick_device, pick_precision  # noqa: E402
from helpers.tokenizer import WordTokenizer  # noqa: E402
from helpers.training import (  # noqa: E402
    TrainingConfig,
    encode_stories,
    epoch_order,
    learning_rate_at,
    make_optimizer,
    optimizer_step,
)
from helpers.vectors import train_vectors  # noqa: E402
from runs import complete  # noqa: E402
from timing import in_turns, machine, spread  # noqa: E402

STEPS, SEEDS = 300, 3
STORIES = 10_000  # to train on; the others are the development set
PARTS = ("development", "validation")


@dataclass(frozen=True)
class Trick:
    """How a run differs from AdamW with a cosine."""

    settings: dict = field(default_factory=dict)  # of TrainingConfig
    start: dict | None = field(default_factory=dict)  # of `new_model`; None: random vectors
    zero: bool = False  # each block's output matrices start at zero
    rates: dict = field(default_factory=dict)  # learning rates of parts, as multiples
    smoothing: float = 0.0  # of the labels
    average: float = 0.0  # at the end, the mean weights of this share of the steps
    small_first: bool = False  # the first half of the stories in twice as many steps
    iterations: int = 5  # of Newton and Schulz
    joint: bool = False  # Muon takes queries, keys and values for one matrix
    steps: int = STEPS


ADAMW = TrainingConfig(muon=None, schedule="cosine", betas=(0.9, 0.95), overwrite_eos=True)
TRAPEZOID = {"schedule": "trapezoid"}
MUON = TRAPEZOID | {"muon": 2.0}
RECIPE = MUON | {"betas": (0.9, 0.99)}
TRICKS = {
    "AdamW, cosine": Trick(),
    "learning rate × 0.5": Trick({"learning_rate": 1e-3}),
    "learning rate × 1.5": Trick({"learning_rate": 3e-3}),
    "learning rate × 2": Trick({"learning_rate": 4e-3}),
    "embedding's rate × 0.5": Trick(rates={"embedding": 0.5}),
    "embedding's rate × 2": Trick(rates={"embedding": 2.0}),
    "output layer's rate × 0.5": Trick(rates={"output": 0.5}),
    "output layer's rate × 2": Trick(rates={"output": 2.0}),
    "blocks' rate × 0.5": Trick(rates={"blocks": 0.5}),
    "blocks' rate × 2": Trick(rates={"blocks": 2.0}),
    "constant rate": Trick({"schedule": "constant"}),
    "constant rate, averaged weights": Trick({"schedule": "constant"}, average=0.25),
    "averaged weights": Trick(average=0.25),
    "trapezoid": Trick(TRAPEZOID),
    "trapezoid, output layer's rate × 2": Trick(TRAPEZOID, rates={"output": 2.0}),
    "zero start": Trick(zero=True),
    "batches of 16, then of 32": Trick(small_first=True),
    "dropout 0.1": Trick({"dropout": 0.1}),
    "weight decay 0.1": Trick({"weight_decay": 0.1}),
    "no clipping": Trick({"clip_norm": None}),
    "second beta 0.99": Trick({"betas": (0.9, 0.99)}),
    "second beta 0.999": Trick({"betas": (0.9, 0.999)}),
    "label smoothing 0.1": Trick(smoothing=0.1),
    "random start": Trick(start=None),
    "vectors in the embedding only": Trick(start={"output_std": None}),
    "frozen vectors": Trick(start={"freeze": True}),
    "Muon × 1": Trick({"muon": 1.0}),
    "Muon × 2": Trick({"muon": 2.0}),
    "Muon × 4": Trick({"muon": 4.0}),
    "Muon × 2, trapezoid": Trick(MUON),
    "Muon × 2, trapezoid, zero start": Trick(MUON, zero=True),
    "… Muon × 1": Trick(MUON | {"muon": 1.0}, zero=True),
    "… Muon × 4": Trick(MUON | {"muon": 4.0}, zero=True),
    "… second beta 0.99": Trick(RECIPE, zero=True),
    "… warm-up 20": Trick(MUON | {"warmup_steps": 20}, zero=True),
    "… weight decay 0.1": Trick(MUON | {"weight_decay": 0.1}, zero=True),
    "… dropout 0.1": Trick(MUON | {"dropout": 0.1}, zero=True),
    "… no clipping": Trick(MUON | {"clip_norm": None}, zero=True),
    "… output layer's rate × 2": Trick(MUON, zero=True, rates={"output": 2.0}),
    "… output layer's rate × 0.5": Trick(MUON, zero=True, rates={"output": 0.5}),
    "… embedding's rate × 2": Trick(MUON, zero=True, rates={"embedding": 2.0}),
    "… random start": Trick(MUON, zero=True, start=None),
    "… queries, keys, values as one": Trick(MUON, zero=True, joint=True),
    "… 4 iterations": Trick(MUON, zero=True, iterations=4),
    "… 3 iterations": Trick(MUON, zero=True, iterations=3),
    "… 2 iterations": Trick(MUON, zero=True, iterations=2),
    "the recipe": Trick(RECIPE),
    "the recipe, in the time of AdamW": Trick(RECIPE, steps=240),
}


class Smoothed(torch.nn.Module):
    """A model whose loss is that of smoothed labels."""

    def __init__(self, model: Decoder, smoothing: float):
        super().__init__()
        self.model, self.smoothing = model, smoothing

    def forward(self, ids, targets):  # (B, T), (B, T) -> (), None
        logits = self.model(ids).flatten(0, 1)  # (B · T, V)
        how = {"ignore_index": 0, "reduction": "sum", "label_smoothing": self.smoothing}
        return F.cross_entropy(logits, targets.flatten(), **how), None


class Run:
    """A model in training with a trick, one optimizer step at a time."""

    def __init__(self, trick: Trick, seed: int, stories, tokenizer, vectors, precision, device):
        self.trick, self.precision, self.device = trick, precision, device
        self.config = replace(ADAMW, seed=seed, **trick.settings)
        vectors = None if trick.start is None else vectors
        self.model = new_model(stories, tokenizer, vectors, seed, **trick.start or {})
        for block in self.model.blocks if trick.zero else ():
            torch.nn.init.zeros_(block.attention.output.weight)
            torch.nn.init.zeros_(block.feed_forward.contract.weight)
        if self.config.dropout is not None:
            self.model.set_dropout(self.config.dropout)
        self.model.to(device).train()
        self.optimizer = make_optimizer(self.model, self.config)
        names = (name for name, p in self.model.named_parameters() if p.requires_grad)
        for name, group in zip(names, self.optimizer.param_groups, strict=True):
            part = name.split(".")[0]
            group["share"] *= trick.rates.get(part, 1.0)
            if trick.joint and group["orthogonal"]:
                group["orthogonal"] = 1
        self.trained = Smoothed(self.model, trick.smoothing) if trick.smoothing else self.model

    def batches(self, stories: int) -> list:
        """The rows of each step's stories, (32,) or (16,)."""
        batch, steps = self.config.batch_size, self.trick.steps
        orders = (epoch_order(stories, self.config.seed, epoch) for epoch in count())
        rows = []
        while len(rows) < steps:
            rows += next(orders).split(batch)
        if not self.trick.small_first:
            return rows[:steps]
        halves = [half for whole in rows[: steps // 2] for half in whole.split(batch // 2)]
        return halves + rows[steps // 2 : steps]

    def step(self, ids, rate: float) -> None:
        muon.ITERATIONS = self.trick.iterations
        ids = ids.long().to(self.device)  # (B, T)
        optimizer_step(self.trained, self.optimizer, ids, rate, self.config, self.precision)

    def train(self, ids) -> None:
        """Take all steps on stories (N, T)."""
        batches, mean, kept = self.batches(len(ids)), [], 0
        for step, rows in enumerate(batches):
            self.step(ids[rows], learning_rate_at(step, len(batches), self.config))
            if step >= len(batches) * (1 - self.trick.average):
                kept += 1
                now = [p.detach().clone() for p in self.model.parameters()]
                mean = [m.lerp(p, 1 / kept) for m, p in zip(mean or now, now, strict=True)]
        with torch.no_grad():
            for p, m in zip(self.model.parameters(), mean, strict=False):
                p.copy_(m)


@functools.cache
def prepared(folder: str) -> dict:
    """Stories, tokenizer, vectors, and the ids of each part."""
    everything = load_stories(folder, train=10**9, validation=VALIDATION)
    texts = list(everything.train)
    parts = {
        "train": texts[:STORIES],
        "development": texts[STORIES:],
        "validation": list(everything.validation),
    }
    tokenizer = WordTokenizer.train(parts["train"])
    length = ModelConfig.context_length
    return {
        "stories": Stories(everything.name, parts["train"], parts["validation"]),
        "tokenizer": tokenizer,
        "vectors": train_vectors(parts["train"], tokenizer),
        "ids": {
            name: encode_stories(tokenizer, part, length, overwrite_eos=True)
            for name, part in parts.items()
        },
    }


def made_run(folder: str, name: str, seed: int) -> Run:
    data, device = prepared(folder), pick_device()
    made = (data[key] for key in ("stories", "tokenizer", "vectors"))
    return Run(TRICKS[name], seed, *made, pick_precision(device), device)


def losses(folder: str, name: str, seed: int) -> dict[str, float]:
    """Nats per token on both parts after training."""
    run, ids = made_run(folder, name, seed), prepared(folder)["ids"]
    run.train(ids["train"])
    return {part: mean_loss(run.model, ids[part], precision=run.precision) for part in PARTS}


def time_steps(folder: str, turns: int = 3) -> dict:
    """Seconds for 64 stories with each trick, and as a multiple of AdamW's, both in turns."""
    ids, (base, *others) = prepared(folder)["ids"]["train"][:64], TRICKS

    def unit(name):
        run = made_run(folder, name, 0)
        run.trick = replace(run.trick, steps=2)
        batches = run.batches(64)
        return lambda: [run.step(ids[rows], 1e-4) for rows in batches]

    found = {}
    first = unit(base)
    for name in others:
        seconds = in_turns({base: first, name: unit(name)}, turns)
        found[name] = {
            "seconds": spread(seconds[name]),
            "of AdamW's": spread([b / a for a, b in zip(*seconds.values(), strict=True)]),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--time", action="store_true", help="time the steps instead")
    options = parser.parse_args()
    if options.time:
        load = os.getloadavg()[0]
        found = {"machine": machine(load), "tricks": time_steps(options.folder)}
        known = load_numbers("tinystories", "ablations")
        FigureFolder("tinystories").save_numbers("ablations", known | {"seconds": found})
        return
    todo = [(name, seed) for seed in range(SEEDS) for name in TRICKS]
    work = functools.partial(losses, options.folder)
    data = prepared(options.folder)
    origin = made_from(data["stories"], data["tokenizer"])
    complete("tinystories", "ablations", work, todo, options.jobs, origin)


if __name__ == "__main__":
    main()
