"""Whole stories: the model of notebook 04 with a context of 256 tokens, and what it then writes.

    python report/whole.py FOLDER            every run
    python report/whole.py FOLDER --jobs 5   so many runs at a time, for a GPU

FOLDER holds TinyStories as train.txt and validation.txt. The first 10,000 stories train. What was
tried is compared on the training stories after those; validation.txt is measured for the figures
that are reported. A run that was stopped goes on from runs/. The first run's model goes where
`load_or_train(FOLDER, context_length=256)` finds it, and writes the texts that are measured.
figures/<name>/whole.json is written after each run, and a run that it holds is not made again.
"""

import argparse
import functools
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from helpers.checkpoints import RUN_FILE, load_checkpoint  # noqa: E402
from helpers.decoding import generate  # noqa: E402
from helpers.evaluation import bits_per_character, quotable  # noqa: E402
from helpers.loss import mean_loss  # noqa: E402
from helpers.notebook import FigureFolder  # noqa: E402
from helpers.recipe import (  # noqa: E402
    VALIDATION,
    made_from,
    new_model,
    save_trained,
    trained_path,
)
from helpers.stories import Stories, load_stories  # noqa: E402
from helpers.support.checks import require  # noqa: E402
from helpers.support.hardware import pick_device, pick_precision  # noqa: E402
from helpers.tokenizer import WordTokenizer  # noqa: E402
from helpers.training import (  # noqa: E402
    TrainingConfig,
    encode_stories,
    make_optimizer,
    optimizer_step,
    train,
)
from helpers.vectors import train_vectors  # noqa: E402
from runs import complete  # noqa: E402
from timing import in_turns, spread  # noqa: E402

CONTEXT, STORIES = 256, 10_000
OURS = "our recipe"
TRIED = {
    OURS: {},
    "dropout 0.1": {"dropout": 0.1},
}
TODO = [(OURS, 0), (OURS, 1), ("dropout 0.1", 0)]
PROMPTS, WORDS = 200, 5  # stories that are continued, and how much of each is given
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "seed": 0}
QUOTED = 10  # texts that are recorded, drawn at random


@functools.cache
def prepared(folder: str) -> dict:
    """The stories, those that choose, and the tokenizer of the first ones."""
    everything = load_stories(folder, train=10**9, validation=VALIDATION)
    stories = Stories(everything.name, everything.train[:STORIES], everything.validation)
    require(
        len(everything.train) > STORIES,
        f"{folder} has no more than {STORIES:,} training stories: those after them are needed to "
        "choose by",
    )
    tokenizer = WordTokenizer.train(stories.train)
    return {
        "stories": stories,
        "development": list(everything.train[STORIES:]),
        "tokenizer": tokenizer,
    }


def made_run(folder: str, name: str, seed: int) -> dict:
    """Train, and measure on whole stories; of our recipe's first seed also what it writes."""
    data = prepared(folder)
    stories, tokenizer = data["stories"], data["tokenizer"]
    saved = ROOT / "runs" / f"{stories.name}-{CONTEXT}, {name}, seed {seed}"
    config = TrainingConfig(seed=seed, folder=saved, save_every=100, **TRIED[name])
    vectors = train_vectors(stories.train, tokenizer)
    model = new_model(stories, tokenizer, vectors, seed, CONTEXT)
    resumed = saved if (saved / RUN_FILE).exists() else None
    history = train(model, tokenizer, stories, config, resume_from=resumed)
    texts = {"development": data["development"], "validation": stories.validation}
    found = {
        split: mean_loss(model, encode_stories(tokenizer, some, CONTEXT), precision="fp32")
        for split, some in texts.items()
    }
    found |= {"minutes": history.seconds / 60, "steps": history.step, "rows": history.rows}
    if name == OURS:
        found["bits_per_character"] = bits_per_character(model, tokenizer, stories.validation)
    if (name, seed) == TODO[0]:
        place = trained_path(folder, stories, CONTEXT)
        save_trained(place, model, tokenizer, history, stories)
        found["texts"] = written(load_checkpoint(place)[0], data)
    shutil.rmtree(saved)
    return found


def written(model, data: dict) -> dict:
    """What the model writes after the beginnings of validation stories, beside the true stories."""
    stories, tokenizer = data["stories"], data["tokenizer"]
    ends = tokenizer.eos_id
    true = [[*tokenizer.encode(text), ends][:CONTEXT] for text in stories.validation[:PROMPTS]]
    given = [ids[:WORDS] for ids in true]
    prompts = [tokenizer.decode(ids) for ids in given]
    found = generate(model, tokenizer, prompts, max_new_tokens=CONTEXT, **SAMPLING)
    ours = [before + one.ids for before, one in zip(given, found, strict=True)]
    chosen = np.random.default_rng(0).choice(PROMPTS, QUOTED, replace=False)
    told = [*stories.train, *data["development"], *stories.validation]
    return {
        "ended": float(np.mean([ids[-1] == ends for ids in ours])),
        "ours": measures(ours, tokenizer),
        "true": measures(true, tokenizer),
        "quoted": quotable([tokenizer.decode(ours[i]) for i in chosen], told),
    }


def measures(texts: list[list[int]], tokenizer: WordTokenizer) -> dict[str, float]:
    """Of texts of ids: their length, how many keep a name, and how much they repeat themselves.

    A name is the word after "named" or "called"; a text keeps it that has it in its last third too.
    """
    kept, distinct = [], []
    for ids in texts:
        words = [tokenizer.word(i) for i in ids]
        named = [b for a, b in pairwise(words) if a in ("named", "called") and b.isalpha()]
        if named:
            kept.append(named[0] in words[-len(words) // 3 :])
        pairs = list(pairwise(ids))
        distinct.append(len(set(pairs)) / len(pairs))
    return {
        "tokens": float(np.mean([len(ids) for ids in texts])),
        "texts with a name": len(kept),
        "names kept": float(np.mean(kept)),
        "distinct pairs": float(np.mean(distinct)),
    }


def step_seconds(data: dict) -> dict[str, dict]:
    """What a training step takes with and without dropout, in turns."""
    precision = pick_precision(device := pick_device())
    ids = encode_stories(data["tokenizer"], data["stories"].train[:32], CONTEXT)  # (B, T)
    steps = {}
    for dropout in (0.0, 0.1):
        config = TrainingConfig(dropout=dropout)
        model = new_model(data["stories"], data["tokenizer"], context_length=CONTEXT).to(device)
        model.train().set_dropout(dropout)
        inputs = make_optimizer(model, config), ids.long().to(device), 1e-3, config, precision
        steps[f"dropout {dropout:g}"] = functools.partial(optimizer_step, model, *inputs)
    return {name: spread(seconds) for name, seconds in in_turns(steps, 5).items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    options = parser.parse_args()
    data = prepared(options.folder)
    origin = made_from(data["stories"], data["tokenizer"]) | {"context": CONTEXT}
    work = functools.partial(made_run, options.folder)
    name = data["stories"].name
    known = complete(name, "whole", work, TODO, options.jobs, origin)
    FigureFolder(name).save_numbers("whole", known | {"step_seconds": step_seconds(data)})


if __name__ == "__main__":
    main()
