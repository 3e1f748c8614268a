"""Seconds of a whole epoch with and without checkpointing, with the optimizer of our recipe.

    python report/epochs.py CORPUS

CORPUS is "tinystories" or a path. Two epochs of each way, in turns; figures/<corpus>/epochs.json is
written after each, and one that it holds is not measured again.
"""

import argparse
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.recipe import made_from, new_model
from helpers.stories import load_stories
from helpers.tokenizer import WordTokenizer
from helpers.training import TrainingConfig, train
from runs import complete

WAYS = {"all kept": (), "ours, a segment a block": (3,)}


def measured(corpus: str, way: str, turn: int) -> dict:
    """The seconds of an epoch, with ten validations on 32 stories, and its precision."""
    stories = load_stories(corpus, validation=32)
    tokenizer = WordTokenizer.train(stories.train)
    config = TrainingConfig(epochs=1, validate_every=10**6, recompute_segments=WAYS[way], seed=turn)
    history = train(new_model(stories, tokenizer), tokenizer, stories, config)
    return {"seconds": history.rows[-1]["seconds"], "precision": history.precision}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus")
    corpus = parser.parse_args().corpus
    stories = load_stories(corpus)
    origin = made_from(stories, WordTokenizer.train(stories.train))
    todo = [(way, turn) for turn in range(2) for way in WAYS]
    complete(corpus, "epochs", functools.partial(measured, corpus), todo, 1, origin)


if __name__ == "__main__":
    main()
