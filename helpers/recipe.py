"""The course's recipe for a trained model: from a corpus to a checkpoint.

`python -m helpers.training --help` is this recipe as a command; on several GPUs or machines it is
`torchrun --nproc-per-node N -m helpers.training --help`.
"""

import argparse
import ast
import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, fields
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
from helpers.stories import CORPORA, Stories, corpus_name, load_stories
from helpers.support.checks import require
from helpers.support.files import make_folder, user_path
from helpers.support.hardware import pick_device, rank_and_processes
from helpers.tokenizer import WordTokenizer
from helpers.training import TrainingConfig, train
from helpers.vectors import WordVectors, train_vectors

VALIDATION = 500  # stories on which the course measures its losses


def new_model(
    stories: Stories,
    tokenizer: WordTokenizer,
    vectors: WordVectors | None = None,
    seed: int = 0,
    context_length: int = ModelConfig.context_length,
    **start,
) -> Decoder:
    """An untrained model of the assignment's size.

    For the bundled stories the vocabulary is their own, which is smaller.

    Args:
        stories, tokenizer: what it will read.
        seed: of its weights; PyTorch's own random stream starts there too.
        vectors: word vectors to start from; None: random ones.
        context_length: tokens; 256 hold most TinyStories to their end.
        start: how to start from them, as `Decoder.start_from_vectors` takes it.
    """
    torch.manual_seed(seed)
    own = len(tokenizer) if stories.name == "bundled" else ModelConfig.vocab_size
    model = Decoder(ModelConfig(vocab_size=own, context_length=context_length))
    model.tokenizer_digest = tokenizer.digest
    if vectors is not None:
        model.start_from_vectors(vectors.matrix(tokenizer, rows=own), **start)
    return model


def made_from(stories: Stories, tokenizer: WordTokenizer) -> dict[str, str]:
    """Digests of what a recorded number rests on: the default recipe, the tokenizer, the stories.

    A recording with other digests is one that the present defaults no longer make.
    """
    settings = asdict(TrainingConfig()) | asdict(ModelConfig())
    recipe = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    digests = {"recipe": recipe, "tokenizer": tokenizer.digest, "stories": stories.digest}
    return {name: digest[:12] for name, digest in digests.items()}


def trained_path(
    corpus: str | Path,
    stories: Stories | None = None,
    context_length: int = ModelConfig.context_length,
) -> Path:
    """Where the trained model of a corpus is: checkpoints/<name>.safetensors.

    If the corpus is a path, the beginning of its stories' digest follows the name, so two files of
    one name have two models. A context that is not the assignment's comes last.

    stories: those that the model is trained on; None: as `load_or_train` loads them.
    """
    name = corpus_name(corpus)
    if corpus not in CORPORA:
        stories = stories or load_stories(corpus, validation=VALIDATION)
        name = f"{name}-{stories.digest[:8]}"
    if context_length != ModelConfig.context_length:
        name = f"{name}-{context_length}"
    return checkpoint_path(CHECKPOINTS / name)


def load_or_train(
    corpus: str | Path = "bundled",
    config: TrainingConfig | None = None,
    path: str | Path | None = None,
    context_length: int = ModelConfig.context_length,
) -> tuple[Decoder, WordTokenizer, dict]:
    """The trained model of a corpus, its tokenizer and metadata.

    They are read from its `trained_path`. If that is not there, the model is trained first, as
    in notebook 04; a progress bar tells how long it takes.

    Args:
        corpus: as `load_stories` takes it.
        config: how to train; None: the defaults.
        path: another place for the checkpoint.
        context_length: 64 for beginnings of stories, 256 for whole ones.

    Raises:
        ValueError: if the checkpoint was trained on other stories, or has another context.
        Errors of `load_stories`, `train` and `load_checkpoint`.
    """
    stories = None if corpus in CORPORA else load_stories(corpus, validation=VALIDATION)
    path = checkpoint_path(path or trained_path(corpus, stories, context_length))
    if not path.exists():
        make_folder(path.parent)  # now, not after the training
        stories = stories or load_stories(corpus, validation=VALIDATION)
        tokenizer = WordTokenizer.train(stories.train)
        vectors = train_vectors(stories.train, tokenizer)
        model = new_model(stories, tokenizer, vectors, context_length=context_length)
        print(f"{path.stem}: there is no trained model yet, so it is trained now")
        history = train(model, tokenizer, stories, config or TrainingConfig())
        save_trained(path, model, tokenizer, history, stories)
    model, tokenizer, metadata = load_checkpoint(path)
    require(
        metadata.get("stories") == stories.digest if stories else metadata.get("corpus") == corpus,
        f"{path} was trained on other stories than {corpus}: name another path, or delete it",
    )
    require(
        model.config.context_length == context_length,
        f"{path} has a context of {model.config.context_length}, not of {context_length}: give its "
        "context_length, or name another path",
    )
    return model, tokenizer, metadata


def save_trained(
    path: str | Path, model: Decoder, tokenizer: WordTokenizer, history: History, stories: Stories
) -> None:
    """The checkpoint that `load_or_train` reads: bfloat16 weights, and the losses they reached."""
    told = {"corpus": stories.name, "stories": stories.digest} | {
        name: history.rows[-1][name] for name in ("step", "tokens", "train_loss", "validation_loss")
    }
    save_checkpoint(path, model, tokenizer, told, torch.bfloat16)


def main(arguments: list[str] | None = None) -> None:
    """Train a model and write its checkpoint; every setting of TrainingConfig is an option."""
    parser = argparse.ArgumentParser(prog="helpers.training", description=main.__doc__)
    parser.add_argument("--corpus", default="bundled", help="bundled, tinystories, or a path")
    parser.add_argument("--stories", type=int, default=10_000, help="how many to train on")
    parser.add_argument(
        "--context-length",
        type=int,
        default=ModelConfig.context_length,
        help="tokens of a story that are read (%(default)s); 256 for whole stories",
    )
    parser.add_argument("--checkpoint", help="file of the trained model (its place in checkpoints)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --folder")
    for setting in fields(TrainingConfig):
        parser.add_argument(
            f"--{setting.name.replace('_', '-')}",
            type=str if setting.type in (str, str | None) else _literal,
            default=setting.default,
        )
    options = vars(parser.parse_args(arguments))
    settings = {setting.name: options.pop(setting.name) for setting in fields(TrainingConfig)}
    try:
        _run_command(TrainingConfig(**settings), **options)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:  # they say what to do
        parser.exit(1, f"{parser.prog}: {error}\n")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _run_command(
    config: TrainingConfig,
    corpus: str,
    stories: int,
    context_length: int,
    checkpoint: str | None,
    resume: bool,
) -> None:
    folder = config.folder and user_path(config.folder)
    require(folder or not resume, "--resume needs the --folder of the run to continue")
    require(
        resume or not folder or not (folder / RUN_FILE).exists(),
        f"{folder} holds a run already: continue it with --resume, delete it, or name another "
        "folder",
    )
    texts = load_stories(corpus, train=stories, validation=VALIDATION)
    target = checkpoint_path(checkpoint or trained_path(corpus, texts, context_length))
    require(
        not target.exists(),
        f"{target} is there already: name another place with --checkpoint, or delete it",
    )
    make_folder(target.parent)  # now, not after hours of training
    if "WORLD_SIZE" in os.environ:  # set by torchrun
        if pick_device(config.device).startswith("cuda"):
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # The others wait while the first one trains the word vectors. NCCL serves GPUs, else gloo.
        dist.init_process_group(timeout=timedelta(hours=6))
    rank, _ = rank_and_processes()
    tokenizer = WordTokenizer.train(texts.train)
    vectors = train_vectors(texts.train, tokenizer) if rank == 0 else None
    model = new_model(texts, tokenizer, vectors, context_length=context_length)
    history = train(model, tokenizer, texts, config, resume_from=folder if resume else None)
    if rank == 0:
        save_trained(target, model, tokenizer, history, texts)
        loss = history.rows[-1]["validation_loss"]
        print(f"step {history.step}: validation loss {loss:.3f} nats per token; model in {target}")


def _literal(text: str):
    """An option's value: 3, 1e-3, true, none, "(3,)", or else a word."""
    named = {"true": True, "false": False, "none": None}
    with suppress(ValueError, SyntaxError):
        return named[text.lower()] if text.lower() in named else ast.literal_eval(text)
    return text


if __name__ == "__main__":
    main()
