"""The course's recipe for a trained model: from a corpus to a checkpoint.

`python -m helpers.training --help` is this recipe as a command; on several GPUs or machines it is
`torchrun --nproc-per-node N -m helpers.training --help`.
"""

import argparse
import ast
import copy
import math
import os
import sys
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from helpers.checkpoints import (
    CHECKPOINTS,
    RUN_FILE,
    History,
    checkpoint_path,
    load_checkpoint,
    save_checkpoint,
)
from helpers.model import Decoder, ModelConfig
from helpers.stories import Stories, corpus_name, load_stories
from helpers.support.files import make_folder
from helpers.support.hardware import pick_device, rank_and_processes
from helpers.tokenizer import WordTokenizer
from helpers.training import TrainingConfig, train
from helpers.vectors import WordVectors, train_vectors

VALIDATION = 500  # stories on which the course measures its losses
_RENAMED = {
    "--checkpoint-every": "--save-every",
    "--checkpoint-segments": "--recompute-segments",
}


def new_model(
    stories: Stories,
    tokenizer: WordTokenizer,
    vectors: WordVectors | None = None,
    seed: int = 0,
    **start,
) -> Decoder:
    """An untrained model of the assignment's size.

    For the bundled stories the vocabulary is their own, which is smaller.

    Args:
        stories, tokenizer: what it will read.
        seed: of its weights; PyTorch's own random stream starts there too.
        vectors: word vectors to start from; None: random ones.
        start: how to start from them, as `Decoder.start_from_vectors` takes it.
    """
    torch.manual_seed(seed)
    own = len(tokenizer) if stories.name == "bundled" else ModelConfig.vocab_size
    model = Decoder(ModelConfig(vocab_size=own))
    model.tokenizer_digest = tokenizer.digest
    if vectors is not None:
        model.start_from_vectors(vectors.matrix(tokenizer, rows=own), **start)
    return model


def load_or_train(
    corpus: str | Path = "bundled",
    config: TrainingConfig | None = None,
    path: str | Path | None = None,
) -> tuple[Decoder, WordTokenizer, dict]:
    """The trained model of a corpus, its tokenizer and metadata.

    They are read from checkpoints/<corpus>.safetensors. If that is not there, the model is trained
    first, as in notebook 04, and the expected time is printed.

    Args:
        corpus: as `load_stories` takes it.
        config: how to train; None: the defaults.
        path: another place for the checkpoint.

    Raises:
        Errors of `load_stories`, `train` and `load_checkpoint`.
    """
    path = checkpoint_path(path or CHECKPOINTS / corpus_name(corpus))
    if path.exists():
        return load_checkpoint(path)
    config = config or TrainingConfig()
    make_folder(path.parent)  # now, not after the training
    stories = load_stories(corpus, validation=VALIDATION)
    tokenizer = WordTokenizer.train(stories.train)
    model = new_model(stories, tokenizer, train_vectors(stories.train, tokenizer))
    minutes = _minutes(model, tokenizer, stories, config)
    print(f"{path.stem}: no trained model yet; training takes about {minutes:.0f} min")
    save_trained(path, model, tokenizer, train(model, tokenizer, stories, config), stories.name)
    return load_checkpoint(path)


def save_trained(
    path: str | Path, model: Decoder, tokenizer: WordTokenizer, history: History, corpus: str
) -> None:
    """The checkpoint that `load_or_train` reads: bfloat16 weights, and the losses they reached."""
    reached = {
        key: history.rows[-1][key] for key in ("step", "tokens", "train_loss", "validation_loss")
    }
    save_checkpoint(path, model, tokenizer, {"corpus": corpus} | reached, torch.bfloat16)


def _minutes(
    model: Decoder, tokenizer: WordTokenizer, stories: Stories, config: TrainingConfig
) -> float:
    """How long `train` will take here, from a few steps of a copy."""
    per_update = config.batch_size * config.accumulation_steps
    few = replace(stories, train=stories.train[: 4 * per_update], validation=stories.validation[:1])
    rows = train(
        copy.deepcopy(model), tokenizer, few, replace(config, max_steps=4, folder=None)
    ).rows
    per_step = (rows[-1]["seconds"] - rows[0]["seconds"]) / max(
        1, rows[-1]["step"] - rows[0]["step"]
    )
    steps = config.epochs * math.ceil(len(stories.train) / per_update)
    return per_step * min(steps, config.max_steps or steps) / 60


def main(arguments: list[str] | None = None) -> None:
    """Train a model and write its checkpoint; every setting of TrainingConfig is an option."""
    parser = argparse.ArgumentParser(prog="helpers.training", description=main.__doc__)
    parser.add_argument("--corpus", default="bundled", help="bundled, tinystories, or a path")
    parser.add_argument("--stories", type=int, default=10_000, help="how many to train on")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="file of the trained model (checkpoints/<corpus>.safetensors)",
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --folder")
    for setting in fields(TrainingConfig):
        parser.add_argument(
            f"--{setting.name.replace('_', '-')}",
            type=str if setting.type in (str, str | None) else _literal,
            default=setting.default,
        )
    for argument in sys.argv[1:] if arguments is None else arguments:
        if (old := argument.partition("=")[0]) in _RENAMED:
            parser.error(f"{old} is now called {_RENAMED[old]}")
    options = vars(parser.parse_args(arguments))
    try:
        config = TrainingConfig(**{s.name: options[s.name] for s in fields(TrainingConfig)})
        target = checkpoint_path(
            options["checkpoint"] or CHECKPOINTS / corpus_name(options["corpus"])
        )
    except ValueError as error:
        parser.error(str(error))
    if target.exists():
        parser.error(
            f"{target} is there already: name another place with --checkpoint, or delete it"
        )
    if options["resume"] and not config.folder:
        parser.error("--resume needs the --folder of the run to continue")
    if config.folder and not options["resume"] and Path(config.folder, RUN_FILE).exists():
        parser.error(
            f"{config.folder} holds a run already: continue it with --resume, delete it, or name "
            "another folder"
        )
    try:
        _run_command(options, config, target)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:  # they say what to do
        parser.exit(1, f"{parser.prog}: {error}\n")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _run_command(options: dict, config: TrainingConfig, target: Path) -> None:
    if "WORLD_SIZE" in os.environ:  # set by torchrun
        if pick_device(config.device).startswith("cuda"):
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # The others wait while the first one trains the word vectors. NCCL serves GPUs, else gloo.
        dist.init_process_group(timeout=timedelta(hours=6))
    rank, _ = rank_and_processes()
    make_folder(target.parent)  # now, not after hours of training
    stories = load_stories(options["corpus"], train=options["stories"], validation=VALIDATION)
    tokenizer = WordTokenizer.train(stories.train)
    model = new_model(
        stories, tokenizer, train_vectors(stories.train, tokenizer) if rank == 0 else None
    )
    history = train(
        model, tokenizer, stories, config, resume_from=config.folder if options["resume"] else None
    )
    if rank == 0:
        save_trained(target, model, tokenizer, history, stories.name)
        last = history.rows[-1]
        print(
            f"step {last['step']}: validation loss {last['validation_loss']:.3f} nats per token; "
            f"model in {target}"
        )


def _literal(text: str):
    """An option's value: 3, 1e-3, true, none, "(3,)", or else a word."""
    text = text.capitalize() if text.lower() in ("true", "false", "none") else text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    main()
