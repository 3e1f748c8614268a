"""What ready-made word vectors are worth as a start, against our own and random ones.

    python report/vectors.py FOLDER VECTORS            every run, three seeds
    python report/vectors.py FOLDER VECTORS --jobs 12  so many runs at a time, for a GPU

FOLDER holds TinyStories as train.txt and validation.txt; VECTORS is a .vec, .vec.gz or .bin file,
such as cc.en.300.bin. The recipe of notebook 04, three epochs, on 10,000 and on 1,000 stories: all
is fixed but the vectors from which embedding and output layer start, and whether the embedding is
trained or frozen. Tokenizer and own vectors know those stories alone. validation.txt is measured.
figures/tinystories/vectors.json is written after each run, and a run that it holds is not made
again.
"""

import argparse
import functools
import sys
from itertools import product
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.fasttext_bin import MISSING
from helpers.loss import mean_loss
from helpers.notebook import FigureFolder
from helpers.recipe import VALIDATION, made_from, new_model
from helpers.stories import Stories, load_stories
from helpers.tokenizer import WordTokenizer
from helpers.training import TrainingConfig, encode_stories, train
from helpers.vectors import WordVectors, load_vectors, train_vectors
from runs import complete

STARTS = ("ready-made", "own", "random")
KINDS = ("tuned", "frozen")
AMOUNTS = (10_000, 1_000)
SEEDS = 3


@functools.cache
def prepared(folder: str, vectors: str, amount: int) -> dict:
    """The stories, their tokenizer, and the vectors of each start."""
    stories = load_stories(folder, train=amount, validation=VALIDATION)
    stories = Stories(stories.name, list(stories.train), list(stories.validation))
    tokenizer = WordTokenizer.train(stories.train)
    ready = load_vectors(vectors, words=tokenizer.words)
    starts = {"ready-made": ready, "own": train_vectors(stories.train, tokenizer), "random": None}
    found, built, _ = ready.coverage(tokenizer)
    covered = (found + built) / len(tokenizer.words)
    return {"stories": stories, "tokenizer": tokenizer, "starts": starts, "covered": covered}


def mean_cosine(vectors: WordVectors, tokenizer: WordTokenizer) -> float:
    """Between two words of the vocabulary, on average: 1 if all vectors point the same way."""
    found, kinds = vectors.lookup(tokenizer.words)  # (words, dim), (words,)
    found = found[kinds != MISSING]
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)  # (found, dim)
    return float(np.square(unit.mean(axis=0)).sum())


def made_run(folder: str, vectors: str, key: str, seed: int) -> dict:
    """Train from one start; the loss on the validation stories, in nats per token."""
    start, kind, amount = key.split(", ")
    data = prepared(folder, vectors, int(amount.split()[0]))
    stories, tokenizer = data["stories"], data["tokenizer"]
    model = new_model(stories, tokenizer, data["starts"][start], seed)
    model.embedding.weight.requires_grad_(kind == "tuned")
    config = TrainingConfig(seed=seed, validate_every=10**6)
    few = Stories(stories.name, stories.train, stories.validation[:50])  # the log is not used
    train(model, tokenizer, few, config)
    ids = encode_stories(tokenizer, stories.validation, model.config.context_length)  # (N, T)
    return {"loss": mean_loss(model, ids, precision="fp32"), "covered": data["covered"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("vectors")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    options = parser.parse_args()
    todo = [
        (f"{start}, {kind}, {amount} stories", seed)
        for seed, amount, start, kind in product(range(SEEDS), AMOUNTS, STARTS, KINDS)
    ]
    work = functools.partial(made_run, options.folder, options.vectors)
    data = prepared(options.folder, options.vectors, max(AMOUNTS))
    origin = made_from(data["stories"], data["tokenizer"])
    known = complete("tinystories", "vectors", work, todo, options.jobs, origin)
    known["mean_cosine"] = {
        f"{start}, {amount} stories": mean_cosine(found["starts"][start], found["tokenizer"])
        for amount in AMOUNTS
        for found in [prepared(options.folder, options.vectors, amount)]
        for start in ("ready-made", "own")
    }
    FigureFolder("tinystories").save_numbers("vectors", known)


if __name__ == "__main__":
    main()
