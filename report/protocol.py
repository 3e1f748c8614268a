"""The baseline recipe and ours, under one protocol: words without punctuation, three epochs.

    python report/protocol.py CORPUS             every run
    python report/protocol.py CORPUS --jobs 5    so many runs at a time, for a GPU

CORPUS is "tinystories" or a path. The last token of a cut story is overwritten by <eos>, as the
baseline does; that flatters the perplexity, and is used for this comparison only. Ours runs with
three seeds, and once with its schedule fitted to 300 steps; the baseline from random vectors, and
with its embedding from fastText's. figures/<corpus>/protocol.json is written after each run, and a
run that it holds is not made again.
"""

import argparse
import functools
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.evaluation import bits_per_character
from helpers.recipe import VALIDATION, made_from, new_model
from helpers.stories import load_stories
from helpers.tokenizer import WordTokenizer
from helpers.training import TrainingConfig, train
from helpers.vectors import train_vectors
from runs import complete

OURS = TrainingConfig(overwrite_eos=True, validate_every=100)
BASELINE = TrainingConfig.baseline(validate_every=100)
RECIPES = {
    "baseline recipe": BASELINE,
    "baseline recipe, fastText start": BASELINE,
    "our recipe": OURS,
    "our recipe in 300 steps": replace(OURS, max_steps=300),
}
TODO = [(name, seed) for name in RECIPES for seed in range(3 if name == "our recipe" else 1)]


def made_run(corpus: str, name: str, seed: int) -> dict:
    """Train by a recipe; its losses on the way, and its bits per character at the end."""
    stories = load_stories(corpus, validation=VALIDATION)
    tokenizer = WordTokenizer.train(stories.train, keep_punctuation=False)
    start = None if name == "baseline recipe" else train_vectors(stories.train, tokenizer)
    # The baseline's output layer starts from random numbers in any case.
    how = {"output_std": None} if RECIPES[name] is BASELINE else {}
    model = new_model(stories, tokenizer, start, seed, **how)
    history = train(model, tokenizer, stories, replace(RECIPES[name], seed=seed))
    bits = bits_per_character(model, tokenizer, stories.validation)
    return {"rows": history.rows, "bits_per_character": bits}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    options = parser.parse_args()
    work = functools.partial(made_run, options.corpus)
    stories = load_stories(options.corpus, validation=VALIDATION)
    tokenizer = WordTokenizer.train(stories.train, keep_punctuation=False)
    origin = made_from(stories, tokenizer)
    complete(options.corpus, "protocol", work, TODO, options.jobs, origin)


if __name__ == "__main__":
    main()
