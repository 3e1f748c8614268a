"""Training: batches of stories, the loss over real tokens, the loop, and checkpoints that are exact
to resume from.

On several GPUs or machines: `torchrun --nproc-per-node N -m helpers.training --help`.
"""

import argparse
import ast
import copy
import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from helpers.files import (
    beside,
    clear_left,
    left_beside,
    make_folder,
    raise_if_full_or_locked,
    read_json,
    write_json,
    write_whole,
)
from helpers.memory import keep_freed_memory, output_loss
from helpers.model import Decoder, ModelConfig
from helpers.stories import Stories, corpus_name, load_stories
from helpers.tokenizer import WordTokenizer
from helpers.vectors import train_vectors

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"
CHECKPOINT_FILES = ("config.json", "model.safetensors", "tokenizer.json")
FORMAT = 2  # of a checkpoint, and of a file to resume from


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. The defaults are the recipe of notebook 04, which also shows others.

    Raises ValueError where a setting makes no sense.
    """

    epochs: int = 3
    batch_size: int = 32  # stories that one process reads at a time
    accumulation_steps: int = 1  # such mini-batches in an optimizer step, whose gradients add up
    learning_rate: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0  # on matrices only, decoupled (AdamW)
    warmup_steps: int = 50
    schedule: str = "cosine"  # to zero, which the step after the last would have; or "constant"
    clip_norm: float | None = 1.0  # the gradient's largest allowed length
    dropout: float | None = None  # None: as the model was built
    max_steps: int | None = None  # stop here, the schedule fitted to it
    validate_every: int = (
        50  # optimizer steps; also at steps 1, 2, 4, 8, … and at the end of each epoch
    )
    precision: str = "auto"  # "bf16", "fp32", or whichever this processor is faster at
    overwrite_eos: bool = (
        False  # the comparison protocol's flaw: the last token of a cut story becomes <eos>
    )
    seed: int = 0
    device: str = "auto"  # "cuda", "mps", "cpu", or the first of these that is there
    folder: str | None = None  # log.csv, timing.csv and the file to resume from are written here
    checkpoint_every: int | None = None  # steps between files to resume from; None: once an epoch
    checkpoint_segments: tuple[
        int, ...
    ] = ()  # less memory for more time: see Decoder.set_checkpointing

    def __post_init__(self):
        def check(names: str, rule: str, fits: Callable, or_none: bool = False) -> None:
            for name in names.split():
                value = getattr(self, name)
                try:
                    right = (value is None and or_none) or fits(value)
                except TypeError:  # a word for a number
                    right = False
                if not right:
                    raise ValueError(
                        f"{name}={value!r}: must be {rule}{', or None' if or_none else ''}"
                    )

        check(
            "epochs batch_size accumulation_steps validate_every",
            "a whole number of at least 1",
            _counts,
        )
        check("max_steps checkpoint_every", "a whole number of at least 1", _counts, or_none=True)
        check("warmup_steps", "a whole number, 0 or more", lambda steps: _counts(steps + 1))
        check(
            "learning_rate weight_decay",
            "a finite number, 0 or more",
            lambda number: 0 <= number < math.inf,
        )
        check(
            "betas",
            "two numbers below 1",
            lambda betas: len(betas) == 2 and all(0 <= beta < 1 for beta in betas),
        )
        check("clip_norm", "above 0", lambda length: length > 0, or_none=True)
        check(
            "dropout",
            "a probability below 1",
            lambda probability: 0 <= probability < 1,
            or_none=True,
        )
        check(
            "checkpoint_segments", "a tuple, such as (3,)", lambda counts: all(map(_counts, counts))
        )
        check("schedule", "'cosine' or 'constant'", ("cosine", "constant").__contains__)
        check("precision", "'auto', 'bf16' or 'fp32'", ("auto", "bf16", "fp32").__contains__)

    @classmethod
    def baseline(cls, **changes) -> "TrainingConfig":
        """The assignment's recipe and the protocol of its comparison: Adam at a constant 3e-4,
        dropout 0.1.
        """
        recipe = cls(
            learning_rate=3e-4,
            betas=(0.9, 0.999),
            warmup_steps=0,
            schedule="constant",
            clip_norm=None,
            dropout=0.1,
            overwrite_eos=True,
        )
        return replace(recipe, **changes)


# Where a run is, and what it records at each validation.
_BEGINNING = {"step": 0, "tokens": 0, "loss_sum": 0.0, "loss_tokens": 0, "seconds": 0.0, "rows": []}
_COLUMNS = {"step", "tokens", "learning_rate", "train_loss", "validation_loss", "seconds"}


def _counts(number) -> bool:
    return isinstance(number, int) and number >= 1


@dataclass
class History:
    """What a run recorded: a row per validation, with step, tokens, learning_rate, train_loss,
    validation_loss, seconds.

    Losses are mean nats per token; train_loss is the mean since the row before; tokens and seconds
    count from the start.
    """

    rows: list[dict] = field(default_factory=list)

    def column(self, name: str) -> list:
        return [row[name] for row in self.rows]

    def save(self, folder: Path) -> None:
        """log.csv, which a resumed run repeats to the bit, and timing.csv, which it cannot."""
        for name, drop in (
            ("log.csv", {"seconds"}),
            ("timing.csv", {"train_loss", "validation_loss", "learning_rate"}),
        ):
            text, columns = io.StringIO(), [key for key in self.rows[0] if key not in drop]
            writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            write_whole(folder / name, text.getvalue())


def encode_stories(
    tokenizer: WordTokenizer, texts: Sequence[str], length: int, overwrite_eos: bool = False
) -> Tensor:  # (N, length)
    """Every story as `length` ids. overwrite_eos replaces the last id of a cut story by `<eos>`,
    for comparisons only.
    """
    ids = np.empty((len(texts), length), dtype=np.int32)  # (N, length)
    for i, text in enumerate(texts):
        ids[i] = tokenizer.encode_story(text, length)
    if overwrite_eos:
        ids[ids[:, -1] != tokenizer.pad_id, -1] = tokenizer.eos_id
    return torch.from_numpy(ids)


def loss_sum(model: Decoder, ids: Tensor, pad_id: int) -> tuple[Tensor, Tensor]:
    """Teacher forcing on ids (B, T): each token predicts the next. Sum of losses in nats, and the
    number of targets.

    The loss of a batch is the ratio of the two: a mean over real tokens, in which `<pad>` has no
    part.
    """
    inputs, targets = ids[:, :-1], ids[:, 1:]  # (B, T-1) each
    hidden, _ = model.hidden(inputs)  # (B, T-1, D)
    total = output_loss(
        hidden, model.output.weight, model.output.bias, targets, ignore_index=pad_id
    )  # ()
    return total, (targets != pad_id).sum()


def mean_loss(
    model: Decoder, ids: Tensor, pad_id: int, precision: str = "auto", batch_size: int = 64
) -> float:
    """Mean loss in nats per real token over encoded stories (N, T), dropout off. Leaves the model's
    mode as it was.
    """
    total, count = _loss_and_count(model, ids, pad_id, precision, batch_size)
    if count == 0:
        raise ValueError("no tokens to measure the loss on: the texts are empty")
    return total / count


@torch.no_grad()
def _loss_and_count(
    model: Decoder, ids: Tensor, pad_id: int, precision: str, batch_size: int = 64
) -> tuple[float, int]:
    device, was_training = model.output.weight.device, model.training
    model.eval()
    total, count = 0.0, 0
    with _autocast(device.type, precision):
        for rows in ids.split(batch_size):
            loss, tokens = loss_sum(model, rows.long().to(device), pad_id)
            total, count = total + loss.item(), count + tokens.item()
    model.train(was_training)
    return total, count


def learning_rate_at(step: int, total_steps: int, config: TrainingConfig) -> float:
    """Linear warm-up, then constant or half a cosine down to zero. Loshchilov & Hutter 2017,
    "SGDR", equation 5.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def train(
    model: Decoder,
    tokenizer: WordTokenizer,
    stories: Stories,
    config: TrainingConfig,
    *,
    resume_from: str | Path | None = None,
    on_validation: Callable[[dict, Decoder], None] | None = None,
) -> History:
    """Train `model` in place on stories.train, validate on stories.validation.

    Step n depends on the config and on n alone: its stories come from the epoch's seeded shuffle,
    its dropout from a seed of its own. A run resumed from `resume_from` (the folder of an earlier
    run of the same config) therefore repeats, to the bit on the same machine, what an uninterrupted
    one does. on_validation(row, model) is called after each validation.

    An optimizer step sees batch_size · accumulation_steps stories in each process of the default
    process group (`torch.distributed`), where there is one. Its gradient is that of the mean loss
    over all their tokens, whichever mini-batch or process they are in; the last step of an epoch
    sees what is left. The first process alone logs, saves and calls on_validation.

    Raises ValueError where vocabulary, model, device, or the file to resume from do not fit,
    FileNotFoundError where there is none, OSError where config.folder cannot be written,
    FloatingPointError where the loss is no longer finite; the files written before then stay as
    they were.
    """
    model.config.check_vocabulary(len(tokenizer))
    keep_freed_memory()
    device = pick_device(config.device)
    rank, processes = _rank_and_processes()
    saved = _read_run(Path(resume_from)) if resume_from is not None else None
    precision = _pick_precision_once(config, device, saved)
    model.to(device).train()
    if config.dropout is not None:
        model.set_dropout(config.dropout)
    model.set_checkpointing(*config.checkpoint_segments)
    length = model.config.context_length
    train_ids = encode_stories(tokenizer, stories.train, length, config.overwrite_eos)  # (N, T)
    validation_ids = encode_stories(
        tokenizer, stories.validation, length, config.overwrite_eos
    )  # (M, T)

    stories_per_step = config.batch_size * config.accumulation_steps * processes
    steps_per_epoch = math.ceil(len(train_ids) / stories_per_step)
    total_steps = min(config.epochs * steps_per_epoch, config.max_steps or sys.maxsize)
    optimizer = _optimizer(model, config)
    identity = _identity(model, config, precision, train_ids, validation_ids)
    state = copy.deepcopy(_BEGINNING)
    if saved:
        state = saved.restore(model, optimizer, identity)
    history = History(state["rows"])
    folder = Path(config.folder) if config.folder and rank == 0 else None
    if folder:
        make_folder(folder)
    loss = _LossSum(model, tokenizer.pad_id)
    if processes > 1:
        loss = DistributedDataParallel(
            loss
        )  # from here on every process has the first one's parameters

    started = time.perf_counter() - state["seconds"]
    random_devices = [model.output.weight.device] if torch.device(device).type == "cuda" else []
    # the bar of notebooks does not read it by itself
    silent = rank > 0 or os.environ.get("TQDM_DISABLE") == "1"
    with (
        torch.random.fork_rng(random_devices),  # the caller's random stream stays as it is
        # Every two seconds: thousands of messages would fill the queue of a front end that is slow
        # to read them.
        tqdm(
            total=total_steps,
            initial=state["step"],
            desc="training",
            unit="step",
            mininterval=2.0,
            disable=silent,
        ) as bar,
        ExitStack() as at_the_end,
    ):
        at_the_end.callback(model.eval)  # after an error too
        for step in range(state["step"], total_steps):
            torch.manual_seed(_seed(config.seed, f"dropout {rank}" if rank else "dropout", step))
            if step % steps_per_epoch == 0 or step == state["step"]:
                order = _epoch_order(len(train_ids), step // steps_per_epoch, config)  # (N,)
            first = step % steps_per_epoch * stories_per_step
            batch = (
                train_ids[order[first : first + stories_per_step]].long().to(device)
            )  # (B, T), that of all processes
            rate = learning_rate_at(step, total_steps, config)
            total, count = _update(
                loss, optimizer, batch, tokenizer.pad_id, rate, step, config, precision
            )

            done = step + 1
            state["step"], state["tokens"] = done, state["tokens"] + count
            state["loss_sum"] += total
            state["loss_tokens"] += count
            bar.update()
            epoch_ends = done % steps_per_epoch == 0 or done == total_steps
            early = done & (done - 1) == 0  # 1, 2, 4, 8, …: the loss falls fastest at the start
            if epoch_ends or early or done % config.validate_every == 0:
                mine = _loss_and_count(
                    model, validation_ids[rank::processes], tokenizer.pad_id, precision
                )
                validation_loss, validation_tokens = _sum_over_processes(batch.device, *mine)
                if not math.isfinite(validation_loss):
                    raise FloatingPointError(
                        f"the validation loss is {validation_loss} after step {done}: lower "
                        f"learning_rate={config.learning_rate}; files written before this step "
                        "are untouched"
                    )
                row = {
                    "step": done,
                    "tokens": state["tokens"],
                    "learning_rate": rate,
                    "train_loss": state["loss_sum"] / state["loss_tokens"],
                    "validation_loss": validation_loss / validation_tokens,
                    "seconds": time.perf_counter() - started,
                }
                state["loss_sum"], state["loss_tokens"] = 0.0, 0
                history.rows.append(row)
                losses = {
                    "train": f"{row['train_loss']:.3f}",
                    "validation": f"{row['validation_loss']:.3f}",
                }
                bar.set_postfix(losses, refresh=False)
                if folder:
                    history.save(folder)
            if folder and (
                epoch_ends or (config.checkpoint_every and done % config.checkpoint_every == 0)
            ):
                state["seconds"] = time.perf_counter() - started
                _save_run(folder, model, optimizer, identity, state)
            if on_validation and rank == 0 and history.rows and history.rows[-1]["step"] == done:
                on_validation(history.rows[-1], model)
    return history


class _LossSum(nn.Module):
    """`loss_sum` as a module, which is what DistributedDataParallel takes."""

    def __init__(self, model: Decoder, pad_id: int):
        super().__init__()
        self.model, self.pad_id = model, pad_id

    def forward(self, ids: Tensor) -> Tensor:  # (B, T) -> ()
        return loss_sum(self.model, ids, self.pad_id)[0]


def _update(
    loss: _LossSum | DistributedDataParallel,
    optimizer,
    batch: Tensor,
    pad_id: int,
    rate: float,
    step: int,
    config: TrainingConfig,
    precision: str,
) -> tuple[float, int]:
    """One optimizer step on the batch (B, T) of all processes. Returns the sum of its losses in
    nats, and of its targets.
    """
    rank, processes = _rank_and_processes()
    # Counted over the whole batch: a mean of the mini-batches' means would be another loss.
    count = (batch[:, 1:] != pad_id).sum()  # ()
    mini_batches = batch[rank::processes].split(config.batch_size)
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for number, ids in enumerate(mini_batches, 1):
        # The processes exchange gradients once, when all of a step have been added up.
        waits = processes > 1 and number < len(mini_batches)
        with loss.no_sync() if waits else nullcontext():
            with _autocast(batch.device.type, precision):
                part = loss(ids)  # ()
            (part / count * processes).backward()  # the exchange takes the mean over the processes
        total += part.item()
    (total,) = _sum_over_processes(batch.device, total)
    gradients = [p.grad for p in loss.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(
        gradients
    )  # (), the same in every process by now: all go on, or none
    if not (math.isfinite(total) and norm.isfinite()):
        raise FloatingPointError(
            f"the loss is {total / count.item()} and its gradient's length {norm.item()} at step "
            f"{step + 1}: lower learning_rate={config.learning_rate}, lengthen the warm-up, or "
            "set clip_norm; files written before this step are untouched"
        )
    if config.clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(loss.parameters(), config.clip_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return total, count.item()


def _rank_and_processes() -> tuple[int, int]:
    """This process' number among those that train together, and how many they are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _sum_over_processes(device: torch.device, *numbers: float) -> list[float]:
    if _rank_and_processes()[1] == 1:
        return list(numbers)
    sums = torch.tensor(
        numbers, dtype=torch.float64, device=device if device.type == "cuda" else "cpu"
    )
    dist.all_reduce(sums)
    return sums.tolist()


def pick_device(device: str = "auto") -> str:
    """The named device, or the first of cuda, mps and cpu that is there. Raises ValueError where
    the named one is not.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(kind for kind in there if there[kind])
    if not there.get(str(device).partition(":")[0]):
        raise ValueError(
            f"device={device!r} is not on this machine: choose 'auto', or one of "
            f"{[*filter(there.get, there)]}"
        )
    return device


def pick_precision(device: str) -> str:
    """bf16 where the hardware multiplies it at least 1.3 times as fast as fp32, by a timed probe;
    else "fp32".

    The probe is needed on a CPU: bf16 that is emulated can be 50 times slower than fp32, native
    bf16 3 times faster.
    """
    kind = torch.device(device).type
    if kind != "cpu":
        return (
            "bf16"
            if kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            else "fp32"
        )
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(256, 512, dtype=dtype)  # (256, 512)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            _ = a @ a.T
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return "bf16" if seconds[torch.float32] > 1.3 * seconds[torch.bfloat16] else "fp32"


def _pick_precision_once(config: TrainingConfig, device: str, saved: "_SavedRun | None") -> str:
    """The same in every process, and in a resumed run: a probe by time may come out differently the
    next time.
    """
    if config.precision != "auto":
        return config.precision
    picked = saved.identity.get("precision") if saved else pick_precision(device)
    if _rank_and_processes()[1] > 1:
        half = torch.tensor(picked == "bf16", device=device).int()  # ()
        dist.broadcast(half, 0)
        picked = "bf16" if half.item() else "fp32"
    return picked


def save_checkpoint(
    folder: str | Path,
    model: Decoder,
    tokenizer: WordTokenizer,
    metadata: dict | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """model.safetensors (weights as `dtype`), config.json (sizes, metadata, checksums) and
    tokenizer.json, all or none.

    A checkpoint that was there is replaced only when the new one is complete. Nothing in it can
    carry code. Raises OSError where it cannot be written, FileExistsError where `folder` holds
    anything but a checkpoint, ValueError where the tokenizer has more tokens than the model.
    """
    folder = Path(folder)
    model.config.check_vocabulary(len(tokenizer))
    if folder.exists():
        others = (
            sorted({path.name for path in folder.iterdir()} - {*CHECKPOINT_FILES})
            if folder.is_dir()
            else ["a file"]
        )
        if others:
            raise FileExistsError(
                f"{folder} is no checkpoint ({others[0]} is there), and is not replaced: name "
                "another"
            )
    partial, weights = beside(folder, "partial"), _on_cpu(model.state_dict(), dtype)
    make_folder(folder.parent)
    try:
        make_folder(partial)
        write_whole(partial / "model.safetensors", save(weights, {"format": "pt"}))
        tokenizer.save(partial / "tokenizer.json")
        state = {
            "model": asdict(model.config),
            "metadata": metadata or {},
            "weights_sha256": _digest(weights),
        }
        state["tokenizer_sha256"] = hashlib.sha256(
            (partial / "tokenizer.json").read_bytes()
        ).hexdigest()
        write_json(partial / "config.json", state, FORMAT)
        _put(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put(whole: Path, folder: Path) -> None:
    """Let a whole folder take the name of another, whoever does the same at the same time.

    Two steps: the old one goes away, the new one takes its place. Who is killed in between leaves
    the new one as `.new`, where `_find` looks for it.
    """
    clear_left(folder)
    new = whole.rename(beside(folder, "new"))
    for _ in range(1_000):
        with suppress(FileNotFoundError):  # another process may take it away first
            shutil.rmtree(folder.rename(beside(folder, "old")), ignore_errors=True)
        with suppress(
            OSError
        ):  # another process may have put its own there: then that is the older one
            new.rename(folder)
        if not new.exists():  # this process has put it there, or one that reads
            return
    raise OSError(f"cannot put {folder} in its place: the new checkpoint is whole, rename {new}")


def _find(folder: Path) -> None:
    """Finish the replacement of a folder, where a killed process left it unfinished."""
    for new in [] if folder.exists() else left_beside(folder, "new"):
        with suppress(OSError):  # another process has done it
            new.rename(folder)


def _on_cpu(tensors: dict[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}


def _digest(tensors: dict[str, Tensor], *texts: str) -> str:
    """The SHA-256 of texts, and of the names, types, shapes and bytes of tensors."""
    names = sorted(tensors)
    shapes = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    digest = hashlib.sha256(json.dumps([texts, shapes]).encode())
    for name in names:
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_checkpoint(folder: str | Path) -> tuple[Decoder, WordTokenizer, dict]:
    """Model (float32, in eval mode), tokenizer and metadata, as `save_checkpoint` wrote them.

    folder: where they are; or "owner/name", a model on the Hugging Face Hub, where there is no such
    folder. Raises FileNotFoundError where a file is missing, ConnectionError where the Hub does not
    give the model, ValueError where a file is damaged or of another shape.
    """
    _find(Path(folder))
    if (
        isinstance(folder, str)
        and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", folder)
        and not Path(folder).exists()
    ):
        folder = _from_hub(folder)
    folder = Path(folder)
    for _ in range(100):
        before = _replaced(folder)
        try:
            return _load_folder(folder)
        except (ValueError, OSError):
            _find(folder)
            if _replaced(folder) == before:
                raise  # else another process has replaced it meanwhile
    return _load_folder(folder)


def _replaced(folder: Path) -> tuple[int, int] | None:
    """Something that changes when another folder takes this name; None where there is none."""
    with suppress(FileNotFoundError):
        stat = folder.stat()
        return stat.st_ino, stat.st_mtime_ns
    return None


def _load_folder(folder: Path) -> tuple[Decoder, WordTokenizer, dict]:
    for name in CHECKPOINT_FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing: {folder} is no complete checkpoint; save or copy it "
                "again"
            )
    config = read_json(folder / "config.json", FORMAT)
    try:
        sizes, metadata = ModelConfig(**config["model"]), config["metadata"]
        weights_sha256, tokenizer_sha256 = config["weights_sha256"], config["tokenizer_sha256"]
        weights = load_file(folder / "model.safetensors")
    except (ValueError, KeyError, TypeError, OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{folder} cannot be read as a checkpoint ({error}): save or copy it again"
        ) from error
    if _digest(weights) != weights_sha256:
        raise ValueError(
            f"{folder / 'model.safetensors'} holds other weights than its config.json says: copy "
            "all files again"
        )
    tokenizer = WordTokenizer.load(folder / "tokenizer.json")
    if hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest() != tokenizer_sha256:
        raise ValueError(
            f"{folder}: its tokenizer.json is not the one that its config.json names: copy all "
            "files again"
        )
    sizes.check_vocabulary(len(tokenizer))
    _check_shapes(sizes, weights, folder)
    model = Decoder(sizes)
    model.load_state_dict(weights)
    return model.eval(), tokenizer, metadata


def _from_hub(name: str) -> Path:
    """The folder into which the Hub's model was downloaded, now or earlier."""
    from huggingface_hub import HfApi, snapshot_download  # heavy, and needed by few
    from huggingface_hub.constants import HF_HUB_CACHE

    wanted, unreachable = list(CHECKPOINT_FILES), None
    try:
        HfApi().repo_info(
            name, timeout=20
        )  # the download would wait for ever for a server that does not answer
    except Exception as error:  # of its HTTP client, which is another one in each version
        unreachable = error
    try:
        try:
            return Path(
                snapshot_download(name, allow_patterns=wanted, local_files_only=bool(unreachable))
            )
        except Exception as error:
            if unreachable or "Timeout" in type(error).__name__:
                raise
            # Once more and from the beginning: what the first try left may be in the way.
            return Path(snapshot_download(name, allow_patterns=wanted, force_download=True))
    except Exception as error:
        raise_if_full_or_locked(error, HF_HUB_CACHE)
        cause = unreachable or error
        raise ConnectionError(
            f"there is no folder {name} here, and the model {name} did not come from the Hugging "
            f"Face Hub ({type(cause).__name__}: {cause}). Check the name, connect to the network, "
            "and try again"
        ) from cause


def load_or_train(
    corpus: str | Path = "bundled",
    config: TrainingConfig | None = None,
    folder: str | Path | None = None,
) -> tuple[Decoder, WordTokenizer, dict]:
    """The trained model of a corpus, its tokenizer and metadata: read from checkpoints/<corpus>/,
    which is trained first where it is not there, after a word on how many minutes that takes.

    Training is that of notebook 04: vectors of the training stories, then `config` (None: the
    defaults). folder: another place for the checkpoint. Raises as `load_stories`, `train` and
    `load_checkpoint` do.
    """
    folder = Path(folder or CHECKPOINTS / corpus_name(corpus))
    _find(folder)
    if folder.exists():
        return load_checkpoint(folder)
    config = config or TrainingConfig()
    make_folder(folder.parent)  # now, not after the training
    stories = load_stories(corpus, validation=500)
    tokenizer = WordTokenizer.train(stories.train)
    model = new_model(stories, tokenizer, train_vectors(stories.train, tokenizer))
    print(
        f"{folder.name}: no trained model yet; training takes about "
        f"{_minutes(model, tokenizer, stories, config):.0f} min"
    )
    history = train(model, tokenizer, stories, config)
    save_trained(folder, model, tokenizer, history, stories.name)
    return load_checkpoint(folder)


def new_model(
    stories: Stories, tokenizer: WordTokenizer, vectors=None, seed: int = 0, **start
) -> Decoder:
    """An untrained model of the assignment's size; of the bundled stories one with their own,
    smaller vocabulary.

    vectors: word vectors to start from, in the manner that `start` tells `Decoder.load_vectors`;
    None: random ones.
    """
    torch.manual_seed(seed)
    model = Decoder(
        ModelConfig(
            vocab_size=len(tokenizer) if stories.name == "bundled" else ModelConfig.vocab_size
        )
    )
    if vectors is not None:
        model.load_vectors(vectors.matrix(tokenizer, rows=model.config.vocab_size), **start)
    return model


def save_trained(
    folder: str | Path, model: Decoder, tokenizer: WordTokenizer, history: History, corpus: str
) -> None:
    """The checkpoint that `load_or_train` reads: weights in bfloat16, half the size, and the losses
    that they reached.
    """
    last = history.rows[-1]
    metadata = {"corpus": corpus} | {
        key: last[key] for key in ("step", "tokens", "train_loss", "validation_loss")
    }
    save_checkpoint(folder, model, tokenizer, metadata, dtype=torch.bfloat16)


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


def _check_shapes(sizes: ModelConfig, weights: dict[str, Tensor], where: Path) -> None:
    """Refuse weights of other names or shapes than a model of these sizes has. It needs no memory
    for the model, which may be as large as a stranger's config likes.
    """
    try:
        with torch.device("meta"):  # shapes without numbers, and no more layers than could be there
            own = Decoder(
                replace(sizes, num_layers=min(sizes.num_layers, len(weights) + 1))
            ).state_dict()
    except (
        RuntimeError,
        TypeError,
    ) as error:  # sizes whose product is no number, or that are not whole
        raise ValueError(
            f"{where} asks for a model that cannot be built ({error}): save or copy it again"
        ) from error
    wrong = [
        f"{name} is {tuple(weights[name].shape) if name in weights else 'missing'}, expected "
        f"{tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name not in weights or weights[name].shape != tensor.shape
    ] + [f"{name} is not part of the model" for name in weights if name not in own]
    if wrong:
        raise ValueError(
            f"{where} holds a model of another shape ({wrong[0]}): build the model with the "
            "config it was saved with"
        )


def _optimizer(model: Decoder, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019); weight decay on matrices, not on word vectors, gains and
    biases.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = [
        p for name, p in trained.items() if p.dim() == 2 and not name.startswith("embedding")
    ]
    others = [p for name, p in trained.items() if p.dim() != 2 or name.startswith("embedding")]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _epoch_order(stories: int, epoch: int, config: TrainingConfig) -> Tensor:  # (N,)
    """The order in which an epoch reads the stories; it depends on the seed and the epoch alone."""
    return torch.randperm(
        stories, generator=torch.Generator().manual_seed(_seed(config.seed, "epoch", epoch))
    )


def _seed(*parts) -> int:
    """A 63-bit seed from anything printable: nearby inputs give unrelated random streams."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


def _autocast(device: str, precision: str):
    if precision == "auto":
        precision = pick_precision(device)
    return torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext()


def _identity(model: Decoder, config: TrainingConfig, precision: str, *encoded: Tensor) -> dict:
    """What must agree for a resumed run to be the same run: model, settings, the precision that was
    chosen, the stories.
    """
    elsewhere = {"device", "folder", "checkpoint_every", "checkpoint_segments"}
    settings = {key: value for key, value in asdict(config).items() if key not in elsewhere}
    settings |= {
        "model": asdict(model.config),
        "precision": precision,
        "frozen": not model.embedding.weight.requires_grad,
        "processes": _rank_and_processes()[1],
    }
    digests = [hashlib.sha256(ids.numpy().tobytes()).hexdigest()[:12] for ids in encoded]
    return json.loads(json.dumps(settings | {"stories": digests}))


def _save_run(folder: Path, model: Decoder, optimizer, identity: dict, state: dict) -> None:
    """Everything a run needs to go on, in ONE file, so that it is there whole or not at all."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": tensor for key, tensor in moments.items()}
    tensors, texts = (
        _on_cpu(tensors),
        {"state": json.dumps(state), "identity": json.dumps(identity)},
    )
    metadata = texts | {"format": str(FORMAT), "sha256": _digest(tensors, *texts.values())}
    write_whole(folder / "resume.safetensors", save(tensors, metadata))


def _read_run(folder: Path) -> "_SavedRun":
    path = folder / "resume.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: there is no run to resume in {folder}; start without resume_from"
        )
    advice = "delete it and start the run again"
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["format"] != str(FORMAT):
            advice = f"update the code, or {advice}"
            raise ValueError(f"it has format {metadata['format']}, this code reads {FORMAT}")
        if _digest(tensors, metadata["state"], metadata["identity"]) != metadata["sha256"]:
            raise ValueError("its content no longer has the SHA-256 that it names")
        state, identity = json.loads(metadata["state"]), json.loads(metadata["identity"])
        rows = isinstance(state, dict) and state.get("rows")
        if not (
            isinstance(identity, dict)
            and isinstance(rows, list)
            and all(type(state.get(key)) is type(value) for key, value in _BEGINNING.items())
            and state["step"] >= 0
            and all(isinstance(row, dict) and row.keys() == _COLUMNS for row in rows)
        ):
            raise ValueError("its state is not that of a run")
        return _SavedRun(path, tensors, state, identity)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}): {advice}") from error


@dataclass(frozen=True)
class _SavedRun:
    """A run as `_save_run` wrote it."""

    path: Path
    tensors: dict[str, Tensor]
    state: dict
    identity: dict

    def restore(self, model: Decoder, optimizer, identity: dict) -> dict:
        """Put weights and moments back; returns the rest. Raises ValueError where it is another
        run's.
        """
        changed = [
            f"{key}: {self.identity.get(key)} there, {value} here"
            for key, value in identity.items()
            if self.identity.get(key) != value
        ]
        if changed:
            raise ValueError(
                f"{self.path} belongs to another run ({'; '.join(changed)}): resume with the "
                "config it was started with"
            )
        weights = {
            name[6:]: tensor for name, tensor in self.tensors.items() if name.startswith("model.")
        }
        _check_shapes(model.config, weights, self.path)
        moments, shapes = optimizer.state_dict(), {}
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, parameter in enumerate(trained):
            own = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
            shapes |= {f"optimizer.{index}.{key}": tuple(shape) for key, shape in own.items()}
            moments["state"][index] = {
                key: self.tensors.get(f"optimizer.{index}.{key}") for key in own
            }
        found = {
            name: tuple(t.shape)
            for name, t in self.tensors.items()
            if name.startswith("optimizer.")
        }
        if found != shapes:
            raise ValueError(
                f"{self.path} holds the moments of another model's optimizer: start the run again"
            )
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)
        return self.state


def main(arguments: list[str] | None = None) -> None:
    """Train a model and write its checkpoint; every setting of TrainingConfig is an option."""
    parser = argparse.ArgumentParser(prog="helpers.training", description=main.__doc__)
    parser.add_argument("--corpus", default="bundled", help="bundled, tinystories, or a path")
    parser.add_argument("--stories", type=int, default=10_000, help="how many to train on")
    parser.add_argument(
        "--checkpoint", type=Path, help="where the trained model goes (checkpoints/<corpus>)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --folder")
    for setting in fields(TrainingConfig):
        kind = str if setting.type in (str, str | None) else _literal
        parser.add_argument(
            f"--{setting.name.replace('_', '-')}", type=kind, default=setting.default
        )
    options = vars(parser.parse_args(arguments))
    try:
        config = TrainingConfig(
            **{setting.name: options[setting.name] for setting in fields(TrainingConfig)}
        )
        target = options["checkpoint"] or CHECKPOINTS / corpus_name(options["corpus"])
    except ValueError as error:
        parser.error(str(error))
    if target.exists():
        parser.error(
            f"{target} is there already: name another place with --checkpoint, or delete it"
        )
    if options["resume"] and not config.folder:
        parser.error("--resume needs the --folder of the run to go on with")
    if (
        config.folder
        and not options["resume"]
        and Path(config.folder, "resume.safetensors").exists()
    ):
        parser.error(
            f"{config.folder} holds a run already: go on with it by --resume, delete it, or name "
            "another folder"
        )

    if "WORLD_SIZE" in os.environ:  # set by torchrun
        if pick_device(config.device).startswith("cuda"):
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # The other processes wait while the first one trains the word vectors. NCCL serves GPUs,
        # gloo everything else.
        dist.init_process_group(timeout=timedelta(hours=6))
    rank, _ = _rank_and_processes()
    try:
        make_folder(target.parent)  # now, not after hours of training
        stories = load_stories(options["corpus"], train=options["stories"], validation=500)
        tokenizer = WordTokenizer.train(stories.train)
        model = new_model(
            stories, tokenizer, train_vectors(stories.train, tokenizer) if rank == 0 else None
        )
        history = train(
            model,
            tokenizer,
            stories,
            config,
            resume_from=config.folder if options["resume"] else None,
        )
        if rank == 0:
            save_trained(target, model, tokenizer, history, stories.name)
            last = history.rows[-1]
            print(
                f"step {last['step']}: validation loss {last['validation_loss']:.3f} nats per "
                f"token; model in {target}"
            )
    except (
        ValueError,
        OSError,
        ImportError,
        FloatingPointError,
    ) as error:  # those that say what to do
        parser.exit(1, f"{parser.prog}: {error}\n")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _literal(text: str):
    """An option's value: 3, 1e-3, true, none, "(3,)", or else a word."""
    text = text.capitalize() if text.lower() in ("true", "false", "none") else text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    main()
