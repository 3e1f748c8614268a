"""Size against data, where the lowest possible loss is known: models of five sizes, five amounts.

    python report/scaling.py            every run
    python report/scaling.py --jobs 12  so many runs at a time, for a GPU

On the grammar stories, with one tokenizer for all. A size is the number of parameters outside the
two tables of the vocabulary. Each model trains at a constant rate until its loss on held-out
stories has not fallen for a while, or for 500 steps, goes back to the best weights, and lets the
rate fall to zero. The rate is chosen for each width on 3,000 stories. Other stories measure the
result.
figures/bundled/scaling.json is written after each run, and a run that it holds is not made again.
"""

import argparse
import copy
import functools
import sys
from collections.abc import Iterator
from itertools import count, product
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.grammar import entropy_floor
from helpers.loss import mean_loss
from helpers.model import Decoder, ModelConfig
from helpers.notebook import FigureFolder
from helpers.recipe import made_from
from helpers.stories import Stories, load_stories
from helpers.support.hardware import pick_device, pick_precision
from helpers.tokenizer import WordTokenizer
from helpers.training import (
    TrainingConfig,
    encode_stories,
    epoch_order,
    make_optimizer,
    optimizer_step,
)
from runs import complete

WIDTHS = (8, 16, 32, 64, 128)
AMOUNTS = (300, 1_000, 3_000, 10_000, 30_000)
RATES = (3e-3, 1e-2, 3e-2)
TRIED_ON = 3_000  # stories on which the rate is chosen
SEEDS = 2
HELD_OUT = 500  # stories that say when to stop, and as many more that measure the result
BATCH, LENGTH = 64, 64
PATIENCE, LONGEST = 3, 500  # measurements without a better one; steps at the constant rate
LIMITS = f"batch {BATCH}, {LENGTH} tokens, {HELD_OUT} held out, {PATIENCE} of {LONGEST} steps"


@functools.cache
def prepared() -> dict:
    """The tokenizer, the ids of each part, and the floor of the stories that measure."""
    stories = load_stories("bundled", train=max(AMOUNTS), validation=2 * HELD_OUT)
    tokenizer = WordTokenizer.train(stories.train)
    measured = Stories(
        "bundled",
        stories.train,
        stories.validation[HELD_OUT:],
        None,
        stories.validation_nats[HELD_OUT:],
    )
    ids = encode_stories(tokenizer, list(stories.train), LENGTH)  # (N, T)
    held_out = encode_stories(tokenizer, list(stories.validation), LENGTH)  # (2 HELD_OUT, T)
    return {
        "made_from": made_from(stories, tokenizer) | {"limits": LIMITS},
        "vocabulary": len(tokenizer),
        "train": ids,
        "stop": held_out[:HELD_OUT],
        "measure": held_out[HELD_OUT:],
        "floor": entropy_floor(measured, LENGTH),
    }


def new_model(width: int, vocabulary: int, seed: int) -> Decoder:
    torch.manual_seed(seed)
    sizes = {
        "embedding_dim": width,
        "d_model": width,
        "d_ff": 4 * width,
        "num_heads": max(1, width // 16),
    }
    return Decoder(ModelConfig(vocab_size=vocabulary, **sizes))


def size_of(model: Decoder) -> int:
    """Its parameters outside the two tables of the vocabulary."""
    tables = model.embedding.weight.numel() + model.output.weight.numel()
    return sum(p.numel() for p in model.parameters()) - tables - model.output.bias.numel()


def batches(ids, seed: int) -> Iterator:
    """Endless batches (B, T), an epoch after another."""
    for epoch in count():
        for rows in epoch_order(len(ids), seed, epoch).split(BATCH):
            yield ids[rows].long()


def fit(width: int, stories: int, rate: float, seed: int, data: dict) -> dict:
    """Train one model; the losses of its best weights, and how long it took to find them."""
    device = pick_device()
    precision = pick_precision(device)
    config = TrainingConfig(seed=seed, batch_size=BATCH)
    every = min(50, max(10, stories // 40))  # steps between measurements
    model = new_model(width, data["vocabulary"], seed).to(device).train()
    optimizer = make_optimizer(model, config)
    stream = batches(data["train"][:stories].to(device), seed)
    best = {"stop": np.inf, "step": 0}
    step = waited = 0

    def advance(rates) -> bool:
        """Take a step at each rate; whether the loss is then the lowest, and its weights kept."""
        nonlocal step, best
        for step_rate in rates:
            optimizer_step(model, optimizer, next(stream), step_rate, config, precision)
        step += len(rates)
        loss = mean_loss(model, data["stop"], precision=precision)
        if loss < best["stop"]:
            best = {"stop": loss, "step": step, "weights": copy.deepcopy(model.state_dict())}
        return best["step"] == step

    while waited < PATIENCE and step < LONGEST:
        warm = np.minimum(1, np.arange(step + 1, step + every + 1) / config.warmup_steps)
        waited = 0 if advance(rate * warm) else waited + 1
    model.load_state_dict(best["weights"])
    found = {"stopped": best["step"], "constant": best["stop"]}
    cooling = max(every, best["step"] * 2 // 3)  # 40 % of the whole, as in the recipe's trapezoid
    falling = rate * (1 - np.arange(cooling) / cooling)  # (cooling,)
    for start in range(0, cooling, every):
        advance(falling[start : start + every])
    model.load_state_dict(best["weights"])
    return found | {
        "size": size_of(model),
        "precision": precision,
        "steps": best["step"],
        "stop": best["stop"],
        "loss": mean_loss(model, data["measure"], precision="fp32"),
        "floor": data["floor"],
    }


def named(width: int, stories: int, rate: float) -> str:
    return f"{width} wide, {stories} stories, rate {rate:g}"


def made_run(key: str, seed: int) -> dict:
    width, stories, rate = (
        part.split()[at] for part, at in zip(key.split(", "), (0, 0, 1), strict=True)
    )
    return fit(int(width), int(stories), float(rate), seed, prepared())


def free_fit(sizes, amounts, losses) -> dict[str, float]:
    """The least squares of floor + a / size^alpha + b / stories^beta, relative to the losses.

    Nothing is told about the floor but that none of the three is negative. For each pair of powers
    in a grid the rest is linear. Hoffmann et al. 2022, "Training Compute-Optimal Large Language
    Models", section 3.3, fit the logarithm, with a Huber loss.
    """
    sizes, amounts, losses = (np.asarray(values, float) for values in (sizes, amounts, losses))
    best = {"relative error": np.inf}
    for alpha, beta in product(np.arange(0.02, 2.0, 0.02), repeat=2):
        columns = [np.ones_like(sizes), sizes**-alpha, amounts**-beta]
        parts = np.stack(columns, axis=1) / losses[:, None]  # (N, 3)
        found, *_ = np.linalg.lstsq(parts, np.ones_like(losses))
        error = np.sqrt(np.mean((parts @ found - 1) ** 2))
        if error < best["relative error"] and (found >= -1e-9).all():
            best = {"floor": found[0], "alpha": alpha, "beta": beta, "relative error": error}
            best["largest"] = np.abs(parts @ found - 1).max()
    return best


def chosen(points: list[dict]) -> dict[str, list[dict]]:
    """Points that somebody might have measured: what a fit says depends on them."""
    return {
        "all points": points,
        "without the smallest size": [p for p in points if p["width"] > WIDTHS[0]],
        "without the smallest amount": [p for p in points if p["stories"] > AMOUNTS[0]],
        "without the largest size and amount": [
            p for p in points if p["width"] < WIDTHS[-1] and p["stories"] < AMOUNTS[-1]
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    jobs = parser.parse_args().jobs
    record = functools.partial(
        complete, "bundled", "scaling", made_run, jobs=jobs, made_from=prepared()["made_from"]
    )
    tried = [(named(width, TRIED_ON, rate), 0) for width, rate in product(WIDTHS, RATES)]
    runs = record(tried)["runs"]
    rates = {
        width: min(RATES, key=lambda rate: runs[named(width, TRIED_ON, rate)]["0"]["stop"])
        for width in WIDTHS
    }
    grid = [
        (width, stories, named(width, stories, rates[width]))
        for width, stories in product(WIDTHS, AMOUNTS)
    ]
    todo = [(key, seed) for seed in range(SEEDS) for *_, key in reversed(grid)]
    known = record(todo)
    points = [
        {"width": width, "stories": stories, "rate": rates[width]}
        | {name: known["runs"][key]["0"][name] for name in ("size", "floor")}
        | {"losses": [known["runs"][key][str(seed)]["loss"] for seed in range(SEEDS)]}
        for width, stories, key in grid
    ]
    fits = {
        name: free_fit(
            *np.transpose([(p["size"], p["stories"], np.mean(p["losses"])) for p in some])
        )
        for name, some in chosen(points).items()
    }
    FigureFolder("bundled").save_numbers("scaling", known | {"points": points, "fits": fits})
    for name, fit in fits.items():
        print(f"{name}: floor {fit['floor']:.3f}; the true one is {points[0]['floor']:.3f}")


if __name__ == "__main__":
    main()
