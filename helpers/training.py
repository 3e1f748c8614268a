"""Training: the settings, the learning rate, one optimizer step, and the loop.

Shape comments name the sizes: N stories, B stories of a batch, T tokens. The command line is in
recipe.py: `python -m helpers.training --help`.
"""

import functools
import hashlib
import json
import math
import os
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from helpers.checkpoints import History, resume_run, save_run
from helpers.loss import total_loss
from helpers.model import Decoder
from helpers.muon import Muon
from helpers.stories import Stories
from helpers.support.checks import TEXTS, check, counts, require
from helpers.support.files import make_folder, user_path
from helpers.support.hardware import (
    autocast,
    keep_freed_memory,
    pick_device,
    pick_precision,
    rank_and_processes,
    sum_over_processes,
)
from helpers.tokenizer import WordTokenizer

_COUNT = "a whole number of at least 1"
_TRAINING_RULES = {
    "epochs batch_size accumulation_steps validate_every": (_COUNT, counts),
    "max_steps save_every": (_COUNT, counts, None),
    "warmup_steps": ("a whole number, 0 or more", lambda steps: counts(steps + 1)),
    "learning_rate weight_decay": (
        "a finite number, 0 or more",
        lambda number: isinstance(number, float | int) and 0 <= number < math.inf,
    ),
    "betas": (
        "two numbers below 1, in a tuple or list",
        lambda betas: (
            isinstance(betas, tuple | list) and len(betas) == 2 and all(0 <= b < 1 for b in betas)
        ),
    ),
    "clip_norm": (
        "a number above 0",
        lambda length: isinstance(length, float | int) and length > 0,
        None,
    ),
    "dropout": (
        "a probability below 1",
        lambda p: isinstance(p, float | int) and 0 <= p < 1,
        None,
    ),
    "overwrite_eos": ("True or False", lambda choice: isinstance(choice, bool)),
    "seed": ("a whole number", lambda seed: isinstance(seed, int) and not isinstance(seed, bool)),
    "folder": ("a path", lambda folder: isinstance(folder, str | Path), None),
    "recompute_segments": ("a tuple, such as (3,)", lambda segments: all(map(counts, segments))),
    "muon": (
        "a finite number above 0",
        lambda number: isinstance(number, float | int) and 0 < number < math.inf,
        None,
    ),
    "schedule": (
        "'trapezoid', 'cosine' or 'constant'",
        ("trapezoid", "cosine", "constant").__contains__,
    ),
    "precision": ("'auto', 'bf16' or 'fp32'", ("auto", "bf16", "fp32").__contains__),
}


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. The defaults are the recipe of notebook 04, which also shows others.

    Raises ValueError if a setting makes no sense.
    """

    epochs: int = 3
    batch_size: int = 32  # stories that one process reads at a time
    accumulation_steps: int = 1  # such mini-batches in an optimizer step, whose gradients add up
    learning_rate: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.99)
    muon: float | None = 2.0  # on the blocks' matrices, at so many times that rate; None: AdamW
    weight_decay: float = 0.0  # on matrices only, decoupled (AdamW)
    warmup_steps: int = 50
    schedule: str = "trapezoid"  # or "cosine": both to zero, a step after the last; or "constant"
    clip_norm: float | None = 1.0  # the gradient's largest allowed length
    dropout: float | None = None  # None: as the model was built
    max_steps: int | None = None  # stop here, the schedule fitted to it
    validate_every: int = 50  # optimizer steps; also 1, 2, 4, 8, … and the end of each epoch
    precision: str = "auto"  # "bf16", "fp32", or whichever this processor is faster at
    overwrite_eos: bool = False  # the comparison protocol's flaw: cut stories end in <eos> too
    seed: int = 0
    device: str = "auto"  # "cuda", "mps", "cpu", or the first of these that is there
    folder: str | None = None  # for log.csv, timing.csv and the saved run
    save_every: int | None = None  # steps between saved runs; None: once an epoch
    recompute_segments: tuple[int, ...] = ()  # less memory for more time: Decoder.set_recomputation

    def __post_init__(self):
        check(vars(self), _TRAINING_RULES)

    @classmethod
    def baseline(cls, **changes) -> "TrainingConfig":
        """The baseline recipe and its comparison protocol: Adam at a constant 3e-4, dropout 0.1."""
        adam = {"learning_rate": 3e-4, "warmup_steps": 0, "schedule": "constant", "clip_norm": None}
        adam |= {"betas": (0.9, 0.999), "muon": None}
        return cls(**adam | {"dropout": 0.1, "overwrite_eos": True} | changes)


def encode_stories(
    tokenizer: WordTokenizer, texts: Sequence[str], length: int, overwrite_eos: bool = False
) -> Tensor:  # (N, length)
    """Every story as `length` ids.

    overwrite_eos replaces the last id of a cut story by `<eos>`, for comparisons only.
    """
    check(locals(), {"texts": TEXTS})
    ids = np.empty((len(texts), length), dtype=np.int32)  # (N, length)
    for i, text in enumerate(texts):
        ids[i] = tokenizer.encode_story(text, length)
    if overwrite_eos:
        ids[ids[:, -1] != tokenizer.pad_id, -1] = tokenizer.eos_id
    return torch.from_numpy(ids)


def learning_rate_at(step: int, total_steps: int, config: TrainingConfig) -> float:
    """Linear warm-up; then constant, or half a cosine down to zero, or constant until the last 40 %
    of the run and a line down to zero (a trapezoid).

    Loshchilov & Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", equation 5;
    Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations".
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "trapezoid":
        return config.learning_rate * min(1.0, (total_steps - step) / (0.4 * total_steps))
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: Decoder, config: TrainingConfig) -> Muon:
    """Muon for the matrices of the blocks, unless config.muon is None; AdamW for everything else.

    Weight decay is on matrices, not on word vectors, gains and biases. Loshchilov & Hutter 2019,
    "Decoupled Weight Decay Regularization".
    """
    groups = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.dim() == 2 and not name.startswith("embedding")
            orthogonal = config.muon is not None and matrix and name.startswith("blocks")
            groups.append(
                {
                    "params": [parameter],
                    "weight_decay": config.weight_decay if matrix else 0.0,
                    # Queries, keys and values are three matrices, one above the other.
                    "orthogonal": (3 if "qkv" in name else 1) if orthogonal else 0,
                    "share": config.muon if orthogonal else 1.0,
                }
            )
    return Muon(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def optimizer_step(
    model: Decoder | DistributedDataParallel,
    optimizer: torch.optim.Optimizer,
    batch: Tensor,
    learning_rate: float,
    config: TrainingConfig,
    precision: str,
) -> tuple[float, int]:
    """One optimizer step on a batch, a mini-batch at a time.

    Its gradient is that of the mean loss over all tokens of the batch, whichever mini-batch or
    process they are in. (Until October 2024, libraries took the mean of the mini-batches' means,
    which is another gradient: see notebook 06.)

    Args:
        model: the decoder, wrapped if several processes train together.
        batch: (B, T), the stories of all processes.
        config: whose batch_size makes the mini-batches, and whose clip_norm is applied.
        precision: "bf16" or "fp32".

    Returns:
        The sum of the losses in nats, and the number of targets.

    Raises:
        FloatingPointError: before the weights change, if loss or gradient is not finite.
    """
    rank, processes = rank_and_processes()
    # Counted over the whole batch: a mean of the mini-batches' means would be another loss.
    count = (batch[:, 1:] != WordTokenizer.pad_id).sum()  # ()
    mini_batches = batch[rank::processes].split(config.batch_size)  # (batch_size, T) each
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for number, ids in enumerate(mini_batches, 1):
        # The processes exchange gradients once, when all of a step have been added up.
        last = processes == 1 or number == len(mini_batches)
        with nullcontext() if last else model.no_sync():
            with autocast(batch.device.type, precision):
                part, _ = model(ids[:, :-1], targets=ids[:, 1:])  # ()
            (part / count * processes).backward()  # the exchange takes the mean over processes
        total += part.item()
    (total,) = sum_over_processes(batch.device, total)
    norm = torch.nn.utils.get_total_norm(
        [p.grad for p in model.parameters() if p.grad is not None]
    )  # (), by now the same in every process
    require(
        math.isfinite(total) and norm.isfinite(),
        f"the loss is {total / count.item()} and its gradient's length {norm.item()}",
        FloatingPointError,
    )
    if config.clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), config.clip_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("share", 1.0)
    with autocast(batch.device.type, precision):  # Muon multiplies matrices
        optimizer.step()
    return total, count.item()


def train(
    model: Decoder,
    tokenizer: WordTokenizer,
    stories: Stories,
    config: TrainingConfig,
    *,
    resume_from: str | Path | None = None,
    on_validation: Callable[[dict, Decoder], None] | None = None,
) -> History:
    """Train `model` in place on stories.train, and validate it on stories.validation.

    Step n depends on the config and on n alone: its stories come from the epoch's seeded shuffle,
    its dropout from a seed of its own. A resumed run therefore repeats, to the bit on the same
    machine, what an uninterrupted one does.

    If several processes train together (`torch.distributed`), a step sees batch_size ·
    accumulation_steps stories in each; the last step of an epoch sees what is left. The first
    process alone logs, saves and calls on_validation.

    Args:
        model: its vocabulary must hold the tokenizer's.
        tokenizer, stories: what to read.
        config: how.
        resume_from: the folder of an earlier run of the same config, to continue it.
        on_validation: called as on_validation(row, model) after each validation.

    Returns:
        What the run recorded.

    Raises:
        ValueError: if the tokenizer is another model's, or model, device or saved run do not fit.
        FileNotFoundError: if there is no run to resume.
        OSError: if config.folder cannot be written.
        FloatingPointError: if the loss is no longer finite. Files written before then stay.
    """
    model.check_tokenizer(tokenizer)
    keep_freed_memory()
    run = _Run(model, tokenizer, stories, config, resume_from)
    model.tokenizer_digest = tokenizer.digest
    history = run.history
    with (
        # The caller's random stream stays as it is.
        torch.random.fork_rng([w.device] if (w := model.output.weight).is_cuda else []),
        tqdm(
            desc="training",
            unit="step",
            initial=history.step,
            total=run.total_steps,
            mininterval=2.0,  # seconds; more messages would fill the queue of a slow front end
            # tqdm's bar for notebooks does not read this variable by itself.
            disable=run.rank > 0 or os.environ.get("TQDM_DISABLE") == "1",
        ) as bar,
        ExitStack() as at_the_end,
    ):
        at_the_end.callback(model.eval)  # after an error too
        for step in range(history.step, run.total_steps):
            stream = f"dropout {run.rank}" if run.rank else "dropout"
            torch.manual_seed(_seed(config.seed, stream, step))
            try:
                row = run.step(step)
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"step {step + 1}: {error}: lower learning_rate={config.learning_rate}, "
                    "lengthen the warm-up, or set clip_norm; files written before this step are "
                    "untouched"
                ) from None
            bar.update()
            if row:
                losses = {name: f"{row[f'{name}_loss']:.3f}" for name in ("train", "validation")}
                bar.set_postfix(losses, refresh=False)
            if row and on_validation and run.rank == 0:
                on_validation(row, model)
    return history


class _Run:
    """What the loop of `train` holds: made once, with the parts of a step as methods."""

    def __init__(self, model, tokenizer, stories, config, resume_from):
        # Of torch.compile: what it wraps has the parameters' names, and is saved.
        self.model, self.config = getattr(model, "_orig_mod", model), config
        self.rank, self.processes = rank_and_processes()
        self.device = pick_device(config.device)
        model.to(self.device).train()
        if config.dropout is not None:
            model.set_dropout(config.dropout)
        model.set_recomputation(*config.recompute_segments)
        shape = model.config.context_length, config.overwrite_eos
        self.train_ids = encode_stories(tokenizer, stories.train, *shape)  # (N, T)
        self.validation_ids = encode_stories(tokenizer, stories.validation, *shape)  # (M, T)

        self.stories_per_step = config.batch_size * config.accumulation_steps * self.processes
        self.steps_per_epoch = math.ceil(len(self.train_ids) / self.stories_per_step)
        self.total_steps = min(
            config.epochs * self.steps_per_epoch, config.max_steps or sys.maxsize
        )
        self.optimizer = make_optimizer(self.model, config)
        self.identity = self._identity()
        self.history = History(precision=config.precision)
        if resume_from is not None:
            folder = user_path(resume_from)
            self.history = resume_run(folder, self.model, self.optimizer, self.identity)
        elif config.precision == "auto":
            # The same in every process: a timed probe may come out differently.
            fast = pick_precision(self.device) == "bf16"
            (votes,) = sum_over_processes(torch.device(self.device), fast)
            self.history.precision = "bf16" if votes == self.processes else "fp32"
        self.folder = user_path(config.folder) if config.folder and self.rank == 0 else None
        if self.folder:
            make_folder(self.folder)
        # From here on every process has the first one's parameters.
        self.wrapped = DistributedDataParallel(model) if self.processes > 1 else model
        self.started = time.perf_counter() - self.history.seconds

    def step(self, step: int) -> dict | None:
        """Take one optimizer step; then validate and save if it is time. Returns the new row."""
        config, history = self.config, self.history
        epoch, place = divmod(step, self.steps_per_epoch)
        order = epoch_order(len(self.train_ids), config.seed, epoch)  # (N,)
        rows = order[place * self.stories_per_step :][: self.stories_per_step]  # (B,)
        batch = self.train_ids[rows].long().to(self.device)  # (B, T)
        rate = learning_rate_at(step, self.total_steps, config)
        found = optimizer_step(self.wrapped, self.optimizer, batch, rate, config, history.precision)
        history.add(*found)
        done = history.step
        epoch_ends = done % self.steps_per_epoch == 0 or done == self.total_steps
        early = done & (done - 1) == 0  # 1, 2, 4, 8, …: the loss falls fastest at the start
        row = None
        if epoch_ends or early or done % config.validate_every == 0:
            loss = self._validation_loss()
            require(math.isfinite(loss), f"the validation loss is {loss}", FloatingPointError)
            row = history.record(rate, loss, time.perf_counter() - self.started)
            if self.folder:
                history.save(self.folder)
        if self.folder and (epoch_ends or (config.save_every and done % config.save_every == 0)):
            history.seconds = time.perf_counter() - self.started
            save_run(self.folder, self.model, self.optimizer, history, self.identity)
        return row

    def _validation_loss(self) -> float:
        mine = self.validation_ids[self.rank :: self.processes]  # (M / processes, T)
        found = total_loss(self.model, mine, precision=self.history.precision)
        total, count = sum_over_processes(self.model.output.weight.device, *found)
        return total / count

    def _identity(self) -> dict:
        """What must agree for a resumed run to be the same run: model, settings, stories."""
        elsewhere = {"device", "folder", "save_every", "recompute_segments"}
        settings = {k: value for k, value in asdict(self.config).items() if k not in elsewhere}
        settings |= {
            "model": asdict(self.model.config),
            "frozen": not self.model.embedding.weight.requires_grad,
            "processes": self.processes,
            "stories": [
                hashlib.sha256(ids.numpy().tobytes()).hexdigest()[:12]
                for ids in (self.train_ids, self.validation_ids)
            ],
        }
        return json.loads(json.dumps(settings))


@functools.lru_cache(maxsize=1)
def epoch_order(stories: int, seed: int, epoch: int) -> Tensor:  # (stories,)
    """The order in which an epoch reads its stories: the seed and the epoch alone decide it."""
    random = torch.Generator().manual_seed(_seed(seed, "epoch", epoch))
    return torch.randperm(stories, generator=random)  # (stories,)


def _seed(*parts) -> int:
    """A 63-bit seed from anything printable: nearby inputs give unrelated random streams."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


if __name__ == "__main__":  # the command makes the model too, which is a later layer's work
    runpy.run_module("helpers.recipe", run_name="__main__", alter_sys=True)
