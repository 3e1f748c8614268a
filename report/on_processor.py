"""What benchmark.py measures on the processor: training, decoding, vectors, cost as work grows."""

import ctypes
import math
import platform
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from helpers.checkpoints import load_checkpoint
from helpers.evaluation import perplexity
from helpers.kv_cache import KVCache
from helpers.model import Decoder, ModelConfig
from helpers.notebook import load_numbers, table
from helpers.stories import load_stories
from helpers.support.hardware import keep_freed_memory, packed_weights, pick_precision
from helpers.tokenizer import WordTokenizer
from helpers.training import TrainingConfig
from helpers.vectors import train_vectors
from peers import (
    BATCH,
    EARLIER,
    GPT2,
    NEW,
    SIZE,
    WHO,
    decoding_models,
    decoding_row,
    earlier_step,
    gpt2_step,
    our_step,
    products,
)
from timing import ROOT, TIMES, alone, in_turns, machine, rate, ratio, save, unsteady

GOAL = 21.44  # validation perplexity of the earlier deliverable after its three epochs
CASES = ((1, 1), (20, 1), (64, 1), (5, 5), (5, 10))  # prompts and beams
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# What --isa needs of the processor, as `torch.backends.cpu.get_cpu_capability` says it.
FITTING = {"AVX2": ("AVX2", "AVX512"), "AVX512_CORE": ("AVX512",)}


# Training -----------------------------------------------------------------------------------------


def training_limit(
    precision: str, turns: int, size: ModelConfig = SIZE, batch: int = BATCH
) -> float:
    """Seconds of a training step's matrix products: each layer forward, and its two backward;
    attention's two and four.
    """
    dtype, T, H = DTYPES[precision], size.context_length - 1, size.num_heads
    K = size.d_model // H
    total = 0.0
    for shape in set(products(size, batch * T)):
        N, i, o = shape
        x, w, g = (torch.randn(*sides).to(dtype) for sides in ((N, i), (o, i), (N, o)))
        three = alone(lambda x=x, w=w, g=g: (x @ w.T, g @ w, g.T @ x), turns)
        total += three * products(size, batch * T).count(shape)
    q, a = torch.randn(batch * H, T, K).to(dtype), torch.randn(batch * H, T, T).to(dtype)
    six = alone(lambda: (q @ q.mT, a @ q, q @ q.mT, a.mT @ q, a @ q, a.mT @ q), turns)
    return total + six * size.num_layers


def memory_of(name: str) -> None:
    """Our training keeps the large blocks that it frees (`keep_freed_memory`); other code has what
    glibc settles on by itself. See `man 3 mallopt`.
    """
    if name.startswith("ours"):
        keep_freed_memory()
    elif platform.libc_ver()[0] == "glibc":
        mmap_threshold, trim_threshold = -3, -1
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 32 << 20)  # bytes
        libc.mallopt(trim_threshold, 64 << 20)


def measure_training(turns: int, size: ModelConfig = SIZE, batch: int = BATCH) -> dict:
    """A step of each in turns, with the memory setting that each has and with ours for all; the
    matrix products alone; and what the rest of our step is.
    """
    runs = {
        "ours, bf16": our_step(size, "bf16", batch),
        f"{GPT2}, bf16": gpt2_step(size, "bf16", batch),
        "ours, fp32": our_step(size, "fp32", batch),
        f"{GPT2}, fp32": gpt2_step(size, "fp32", batch),
        f"{EARLIER}, fp32": earlier_step(size, batch),
    }
    seconds = in_turns(runs, turns, before=memory_of)
    keep_freed_memory()
    shared = in_turns(runs, turns)
    picked = pick_precision("cpu")
    tokens = batch * (size.context_length - 1)
    pairs = {
        f"{precision}, against {whom}": (f"ours, {precision}", f"{who}, {theirs or precision}")
        for whom, who, theirs in (
            ("the earlier deliverable", EARLIER, "fp32"),
            ("GPT-2", GPT2, None),
        )
        for precision in DTYPES
    }
    return {
        "picked": picked,  # by pick_precision: what training takes by itself
        "rows": {
            name: {"ms": statistics.median(found) * 1e3, "tokens_per_second": rate(tokens, found)}
            for name, found in seconds.items()
        },
        "limit_ms": {
            precision: training_limit(precision, turns, size, batch) * 1e3 for precision in DTYPES
        },
        "ratios": {name: ratio(seconds[a], seconds[b]) for name, (a, b) in pairs.items()},
        "ratios_with_our_memory": {
            name: ratio(shared[a], shared[b]) for name, (a, b) in pairs.items()
        },
        "profile": {"precision": picked, "percent": kinds_of_time(runs[f"ours, {picked}"])},
    }


# Operations by the beginning of their name, without `aten::` and its like: the first that fits.
KINDS = {
    "optimizer": r"_fused_adam|_foreach|Optimizer|linalg_vector_norm",
    "matrix products": r"(add|b|badd)?mm|matmul|linear$",
    "casts and copies": r"copy|_to_copy|to$|clone|contiguous|fill|zero|cat|empty",
    "softmax and loss": r"_?(log_)?softmax|exp_?$|gather|scatter|logsumexp",
    "norms and element-wise work": (
        r"mul|add|sub|rsub|div|neg|mean|sum|rsqrt|sqrt|square|pow|gelu|dropout|bernoulli|bitwise"
    ),
}


def kinds_of_time(step: Callable[[], object], steps: int = 5) -> dict[str, float]:
    """Percent of a step's time in operations of each kind, by PyTorch's profiler.

    The time of an operation does not count those that it calls. It is that of the thread that
    calls: the profiler's own work is a part of it.
    """
    step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            step()
    spent = dict.fromkeys([*KINDS, "everything else"], 0.0)
    for event in found.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total
    return {kind: 100 * spent[kind] / sum(spent.values()) for kind in spent}


def kind_of(operation: str) -> str:
    name = operation.rpartition("::")[2]
    found = (kind for kind, begins in KINDS.items() if re.match(begins, name))
    return next(found, "everything else")


def steps_to(goal: float, rows: list[dict]) -> float:
    """When a recorded curve of validation losses first passes a perplexity, on the line between
    two records.
    """
    target = math.log(goal)
    for before, after in pairwise(rows):
        if after["validation_loss"] <= target:
            share = (before["validation_loss"] - target) / (
                before["validation_loss"] - after["validation_loss"]
            )
            return before["step"] + share * (after["step"] - before["step"])
    raise ValueError(f"the recorded run never reaches a perplexity of {goal}")


def time_to_goal(picked: str, turns: int, batch: int = BATCH, **vectors) -> dict:
    """Recorded steps times the time of a step as measured now, ours in the precision picked."""
    runs = load_numbers("tinystories", "protocol")["runs"]
    steps = {
        "ours": steps_to(GOAL, runs["our recipe in 300 steps"]["0"]["rows"]),
        "the earlier deliverable": float(runs["baseline recipe"]["0"]["rows"][-1]["step"]),
    }
    recipe = our_step(SIZE, picked, batch, muon=TrainingConfig.muon)
    runs = {"ours": recipe, "the earlier deliverable": earlier_step(SIZE, batch)}
    found = in_turns(runs, turns, before=memory_of)
    seconds = {name: steps[name] * statistics.median(found[name]) for name in steps}
    return {
        "perplexity": GOAL,
        "steps": steps,
        "seconds": seconds,
        "seconds_for_vectors": seconds_for_vectors(**vectors),
        "ratio": seconds["the earlier deliverable"] / seconds["ours"],
    }


def seconds_for_vectors(count: int = 10_000) -> float:
    """Of training word vectors on bundled stories. Ours starts from such vectors, the earlier
    deliverable does not.
    """
    stories = load_stories("bundled", train=count)
    tokenizer = WordTokenizer.train(stories.train)
    with tempfile.TemporaryDirectory() as folder, patch.dict("os.environ", CACHE_DIR=folder):
        start = time.perf_counter()
        train_vectors(stories.train, tokenizer)
        return time.perf_counter() - start


# Decoding -----------------------------------------------------------------------------------------


def decoding_limit(
    rows: int, dtype: torch.dtype, turns: int, size: ModelConfig = SIZE, new: int = NEW
) -> float:
    """Seconds of the linear layers for `new` tokens of so many texts, one after the other as a
    model has them; packed or not, whichever is quicker.
    """
    layers = nn.ModuleList(nn.Linear(i, o) for _, i, o in products(size, rows)).to(dtype)
    inputs = [torch.randn(rows, layer.in_features).to(dtype) for layer in layers]  # (rows, in) each

    def run():
        return [layer(x) for layer, x in zip(layers, inputs, strict=True)]

    with torch.inference_mode():
        plain = alone(run, 10 * turns)
        with packed_weights(layers):
            return new * min(plain, alone(run, 10 * turns))


def measure_decoding(
    dtype: torch.dtype, turns: int, cases=CASES, size: ModelConfig = SIZE, new: int = NEW
) -> list[dict]:
    """For each (prompts, beams) what `decoding_row` gives, and the limit in tokens per second."""
    models = decoding_models(size, dtype)
    return [
        decoding_row(models, prompts, beams, new, turns)
        | {"limit": prompts * new / decoding_limit(prompts * beams, dtype, turns, size, new)}
        for prompts, beams in cases
    ]


def perplexities(count: int = 200) -> dict[str, float]:
    """Of the bundled model on bundled validation stories, weights in float32 and in bfloat16."""
    model, tokenizer, _ = load_checkpoint(ROOT / "checkpoints" / "bundled")
    texts = load_stories("bundled", train=1, validation=count).validation
    return {
        "fp32": perplexity(model, tokenizer, texts),
        "bf16": perplexity(model.to(torch.bfloat16), tokenizer, texts),
    }


# Vectors ------------------------------------------------------------------------------------------

OURS = """
import resource, sys, time
from helpers.tokenizer import WordTokenizer
from helpers.training import TrainingConfig
from helpers.vectors import load_vectors
tokenizer = WordTokenizer([f"word{i}" for i in range(0, 2_000_000, 200)])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
matrix = load_vectors(sys.argv[1]).matrix(tokenizer)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(time.perf_counter() - start, peak, len(matrix))
"""
THEIRS = """
import resource, sys, time
import fasttext, numpy
words = [f"word{i}" for i in range(0, 2_000_000, 200)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
model = fasttext.load_model(sys.argv[1])
matrix = numpy.stack([model.get_word_vector(word) for word in words])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(time.perf_counter() - start, peak, len(matrix))
"""


def write_large_bin(
    path: Path, words: int = 2_000_000, bucket: int = 2_000_000, dim: int = 300
) -> None:
    """A fastText .bin as large as `cc.en.300.bin`. It has words, but no numbers: these are holes in
    the file, which read as zeros and take no disk.
    """
    header = struct.pack(
        "<2i12id", 793712314, 12, dim, 5, 1, 1, 5, 1, 2, 2, bucket, 5, 5, 100, 1e-4
    )
    with open(path, "wb") as file:
        file.write(header + struct.pack("<3i2q", words, words, 0, 99, -1))
        file.write(
            b"".join(
                f"word{i}".encode() + b"\0" + struct.pack("<qb", words - i, 0) for i in range(words)
            )
        )
        for rows in (words + bucket, words):
            file.write(struct.pack("<B2q", 0, rows, dim))
            file.truncate(file.tell() + rows * dim * 4)
            file.seek(0, 2)


def measure_vectors(turns: int = 3, **size) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "large.bin")
        write_large_bin(path, **size)
        found = {"file_gb": path.stat().st_size / 1e9}
        unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
        for name, script, count in (("ours", OURS, turns), ("fasttext", THEIRS, 1)):
            runs = []
            for _ in range(count):
                done = subprocess.run(
                    [sys.executable, "-c", script, str(path)],
                    cwd=ROOT,
                    capture_output=True,
                    text=True,
                    check=True,
                )
                runs.append([float(value) for value in done.stdout.split()])
            found[name] = {
                "seconds": statistics.median(r[0] for r in runs),
                "gb": max(r[1] for r in runs) * unit / 1e9,
            }
    return found


# Cost as work grows -------------------------------------------------------------------------------


def measure_scaling(precision: str, turns: int, quick: bool = False) -> dict[str, dict]:
    """Milliseconds of a training step against batch, context, layers and vocabulary, and of a
    decoding step against the number of tokens in the cache; everything that is not named is the
    default.
    """

    batch = 4 if quick else BATCH

    def changed(name: str) -> Callable:
        return lambda n: our_step(ModelConfig(**{name: n}), precision, batch)

    series = {
        "stories in a batch": (lambda n: our_step(SIZE, precision, n), (8, 16, 32, 64)),
        "tokens of context, 8 stories": (
            lambda n: our_step(ModelConfig(context_length=n), precision, min(batch, 8)),
            (32, 64, 128, 256, 512, 1024),
        ),
        "blocks": (changed("num_layers"), (1, 3, 6, 12)),
        "words in the vocabulary": (changed("vocab_size"), (2_500, 5_000, 10_000, 20_000)),
        "tokens in the cache": (decoding_step, (64, 256, 512, 1024)),
    }
    numbers = {}
    for name, (make, sizes) in series.items():
        sizes = sizes[:2] if quick else sizes
        times = 10 * turns if make is decoding_step else turns
        seconds = in_turns({str(n): make(n) for n in sizes}, times)
        numbers[name] = {
            "x": list(sizes),
            "ms": [statistics.median(seconds[str(n)]) * 1e3 for n in sizes],
        }
    return numbers


def decoding_step(length: int, rows: int = 20):
    """Read one token of each of 20 rows, after `length` others."""
    model = Decoder(ModelConfig(context_length=length + 1)).eval()
    cache = KVCache(model.config, rows)
    ids = torch.randint(4, SIZE.vocab_size, (rows, 1))  # (B, 1)
    with torch.inference_mode():
        model(torch.randint(4, SIZE.vocab_size, (rows, length)), cache)

    @torch.inference_mode()
    def step():
        model(ids, cache)
        cache.length = length

    return step


# All of it ----------------------------------------------------------------------------------------


def rates_of(numbers: dict) -> dict[str, dict[str, float]]:
    """The rate of every run in training and decoding, by name."""
    rates = {name: row["tokens_per_second"] for name, row in numbers["training"]["rows"].items()}
    for precision, rows in numbers["decoding"].items():
        for row in rows:
            for who in row.keys() & WHO:
                rates[f"{row['work']}, {precision}, {who}"] = row[who]
    return rates


def measure(turns: int, load: float, quick: bool = False, isa: str | None = None) -> dict:
    """Every number. isa: oneDNN's limit, under which training and decoding alone are measured."""
    keep_freed_memory()
    training = measure_training(turns, batch=4 if quick else BATCH)
    numbers: dict = {"machine": machine(load), "training": training}
    cases = {"cases": ((2, 1), (2, 2))} if quick else {}
    numbers["decoding"] = {
        name: measure_decoding(dtype, turns, **cases) for name, dtype in DTYPES.items()
    }
    numbers["machine"]["busy"] += unsteady(rates_of(numbers))
    if isa:
        return numbers
    small = {"batch": 4, "count": 200} if quick else {}
    numbers["to_the_goal"] = time_to_goal(training["picked"], turns, **small)
    numbers["perplexity"] = perplexities(50 if quick else 200)
    small = {"turns": 1, "words": 20_000, "bucket": 10_000} if quick else {}
    numbers["vectors"] = measure_vectors(**small)
    # Their shape is asked for, not their digits: fewer turns will do.
    numbers["scaling"] = measure_scaling(training["picked"], min(turns, 5), quick)
    return numbers


def show(numbers: dict) -> None:
    """The same as tables, each under the machine, and a busy machine in front of them."""
    print(*numbers["machine"]["busy"], sep="\n", end="\n\n" * bool(numbers["machine"]["busy"]))
    for rows, columns in tables(numbers):
        print(table(rows, columns, numbers["machine"]["caption"]), end="\n\n")


def tables(numbers: dict):
    """Rows and columns of each table."""
    training = numbers["training"]
    yield (
        [
            [
                name,
                f"{row['ms']:.0f}",
                f"{row['tokens_per_second']['median']:,.0f}",
                f"{training['limit_ms'][name[-4:]] / row['ms']:.0%}",
            ]
            for name, row in training["rows"].items()
        ],
        ["training step", "ms", "tokens/s", "of it matrix products"],
    )
    yield (
        [
            [name, TIMES.format(**row), TIMES.format(**training["ratios_with_our_memory"][name])]
            for name, row in training["ratios"].items()
        ],
        ["ours", "times as fast (quartiles, lowest)", "with our memory setting for all"],
    )
    shares = training["profile"]["percent"].items()
    precision = training["profile"]["precision"]
    yield [[kind, f"{share:.0f}"] for kind, share in shares], [f"our step, {precision}", "%"]
    yield (
        [
            [
                f"{row['work']}, {precision}",
                *(f"{row[who]['median']:,.0f}" if who in row else "" for who in WHO),
                f"{row['limit']:,.0f}",
                TIMES.format(**row["ratio"]),
                TIMES.format(**row["ratio_plain"]) if "ratio_plain" in row else "",
            ]
            for precision, rows in numbers["decoding"].items()
            for row in rows
        ],
        ["decoding, tokens/s", *WHO, "limit", "times Hugging Face", "times the plain loop"],
    )
    if "to_the_goal" not in numbers:
        return
    goal, vectors = numbers["to_the_goal"], numbers["vectors"]
    yield (
        [[name, goal["steps"][name], seconds] for name, seconds in goal["seconds"].items()],
        [f"to a perplexity of {goal['perplexity']}", "steps", "s"],
    )
    yield (
        [
            [name, ", ".join(map(str, row["x"])), ", ".join(f"{ms:.0f}" for ms in row["ms"])]
            for name, row in numbers["scaling"].items()
        ],
        ["cost against", "", "ms"],
    )
    yield (
        [[name, vectors[name]["seconds"], vectors[name]["gb"]] for name in ("ours", "fasttext")],
        [f"vectors from {vectors['file_gb']:.1f} GB", "s", "GB"],
    )
    yield list(numbers["perplexity"].items()), ["weights", "perplexity"]


def main(load: float, record: bool, quick: bool, isa: str | None) -> None:
    """Measure, show, and write the file, unless it is a quick run.

    Exits if this processor has not what `isa` names.
    """
    kernels = torch.backends.cpu.get_cpu_capability()
    if isa and kernels not in FITTING[isa]:
        sys.exit(
            f"--isa {isa}: this processor offers PyTorch no more than {kernels}: name another "
            "limit, or measure it as it is"
        )
    warnings.filterwarnings("ignore", module="transformers")
    numbers = measure(1 if quick else 9, load, quick, isa)
    show(numbers)
    if not quick:
        print(save(f"speed_{isa}" if isa else "speed", numbers, record))
