"""How fast the code is: beside other code, and below the limit that this machine sets.

    python report/benchmark.py            minutes -> tables, and build/benchmark/speed.json
    python report/benchmark.py --record   -> figures/benchmark/speed.json instead
    python report/benchmark.py --quick    the same in small, to see that it works; writes nothing

What is compared runs in turns, in one process, after a run to warm up; a ratio is the median of the
ratios of the turns. The limit is the time of the same work's matrix products alone, each measured
by itself: nothing else would have to be computed. Notebooks 06 and 07 and the README show the
recorded numbers. Times belong to the machine they were measured on; ratios carry over better.
"""

import argparse
import ctypes
import math
import platform
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
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from helpers.checkpoints import load_checkpoint  # noqa: E402
from helpers.decoding import generate  # noqa: E402
from helpers.evaluation import perplexity  # noqa: E402
from helpers.kv_cache import KVCache  # noqa: E402
from helpers.model import Decoder, ModelConfig, MultiHeadAttention, sinusoidal_positions  # noqa: E402
from helpers.notebook import FigureFolder, load_numbers, table  # noqa: E402
from helpers.stories import load_stories  # noqa: E402
from helpers.support.hardware import keep_freed_memory, packed_weights, pick_device  # noqa: E402
from helpers.tokenizer import WordTokenizer  # noqa: E402
from helpers.training import TrainingConfig, make_optimizer, optimizer_step  # noqa: E402
from helpers.vectors import train_vectors  # noqa: E402

SIZE = ModelConfig()
BATCH, CONTEXT = 32, SIZE.context_length
GOAL = 21.44  # validation perplexity of the earlier deliverable after its three epochs
PROMPT, NEW = 4, 59  # words of a prompt; <sos>, these and 59 new tokens fill the context


# Measuring ----------------------------------------------------------------------------------------


def in_turns(
    runs: dict[str, Callable[[], object]], turns: int, before: Callable[[str], None] | None = None
) -> dict[str, list[float]]:
    """Seconds of each run in each turn. One turn before the first warms up. before(name): called
    before each run, which is then repeated, and timed the second time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            if before:
                before(name)
                run()
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rate(work: float, seconds: list[float]) -> dict[str, float]:
    """Work per second: the median, the slowest and the fastest turn."""
    return {
        "median": work / statistics.median(seconds),
        "low": work / max(seconds),
        "high": work / min(seconds),
    }


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """How many times as fast ours is, turn by turn."""
    each = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(each), "low": min(each), "high": max(each)}


def alone(function: Callable[[], object], turns: int) -> float:
    """Median seconds of one call."""
    return statistics.median(in_turns({"": function}, turns)[""])


# The earlier deliverable's training step, written anew from its description, in our sizes ---------


class EarlierNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gain, self.bias = (
            nn.Parameter(torch.ones(width)),
            nn.Parameter(torch.zeros(width)),
        )  # (D,) each

    def forward(self, x: Tensor) -> Tensor:  # (…, D) -> (…, D)
        mean, variance = (
            x.mean(-1, keepdim=True),
            x.var(-1, keepdim=True, unbiased=False),
        )  # (…, 1) each
        return self.gain * (x - mean) / torch.sqrt(variance + 1e-5) + self.bias  # (…, D)


class EarlierBlock(nn.Module):
    """Queries, keys and values apart, a mask of -1e9, dropout after each part."""

    def __init__(self, size: ModelConfig, dropout: float):
        super().__init__()
        self.heads, width = size.num_heads, size.d_model
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.expand, self.contract = nn.Linear(width, size.d_ff), nn.Linear(size.d_ff, width)
        self.norms = nn.ModuleList([EarlierNorm(width), EarlierNorm(width)])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # (B, T, D), (T, T) -> (B, T, D)
        B, T, D = x.shape
        y = self.norms[0](x)  # (B, T, D)
        q, k, v = (
            layer(y).view(B, T, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )  # (B, H, T, K)
        scores = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).masked_fill(
            mask == 0, -1e9
        )  # (B, H, T, T)
        mixed = self.dropout(scores.softmax(-1)) @ v  # (B, H, T, K)
        x = x + self.dropout(
            self.output(mixed.transpose(1, 2).contiguous().view(B, T, D))
        )  # (B, T, D)
        return x + self.dropout(
            self.contract(self.dropout(F.gelu(self.expand(self.norms[1](x)))))
        )  # (B, T, D)


class EarlierModel(nn.Module):
    def __init__(self, size: ModelConfig, dropout: float = 0.1):
        super().__init__()
        self.embedding = nn.Embedding(size.vocab_size, size.embedding_dim, padding_idx=0)
        self.projection = nn.Linear(size.embedding_dim, size.d_model)
        self.blocks = nn.ModuleList(EarlierBlock(size, dropout) for _ in range(size.num_layers))
        self.norm = EarlierNorm(size.d_model)
        self.output = nn.Linear(size.d_model, size.vocab_size)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("positions", sinusoidal_positions(size.context_length, size.d_model))

    def forward(self, ids: Tensor) -> Tensor:  # (B, T) -> (B, T, V)
        x = self.dropout(
            self.projection(self.embedding(ids)) + self.positions[: ids.shape[1]]
        )  # (B, T, D)
        mask = torch.tril(torch.ones(ids.shape[1], ids.shape[1], device=ids.device))  # (T, T)
        for block in self.blocks:
            x = block(x, mask)  # (B, T, D)
        return self.output(self.norm(x))  # (B, T, V)


# Training -----------------------------------------------------------------------------------------


def our_step(
    size: ModelConfig,
    precision: str,
    batch: int | None = None,
    context: int = CONTEXT,
    device: str = "cpu",
    model=None,
):
    """One optimizer step of helpers.training, the recipe of notebook 04. batch: stories (None:
    BATCH).
    """
    batch = batch or BATCH
    torch.manual_seed(0)
    model = (model or Decoder(size)).to(device).train()
    config = TrainingConfig(batch_size=batch)
    ids = torch.randint(4, size.vocab_size, (batch, context), device=device)  # (B, T), no <pad>
    optimizer = make_optimizer(model, config)
    return lambda: optimizer_step(model, optimizer, ids, 1e-4, config, precision)


def earlier_step(size: ModelConfig = SIZE):
    torch.manual_seed(0)
    model = EarlierModel(size).train()
    ids = torch.randint(4, size.vocab_size, (BATCH, CONTEXT))  # (B, T)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)

    def step():
        logits = model(ids[:, :-1])  # (B, T-1, V)
        loss = F.cross_entropy(
            logits.reshape(-1, size.vocab_size), ids[:, 1:].reshape(-1), ignore_index=0
        )  # ()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def gpt2(size: ModelConfig = SIZE) -> GPT2LMHeadModel:
    """A GPT-2 of our sizes, without dropout, its output layer not tied to the embedding, as ours is
    not.
    """
    config = GPT2Config(
        vocab_size=size.vocab_size,
        n_positions=size.context_length,
        n_embd=size.d_model,
        n_layer=size.num_layers,
        n_head=size.num_heads,
        n_inner=size.d_ff,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        loss_type="ForCausalLM",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return GPT2LMHeadModel(config)


def gpt2_step(precision: str):
    model = gpt2().train()
    ids = torch.randint(4, SIZE.vocab_size, (BATCH, CONTEXT))  # (B, T)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()  # (B, T-1) each
    config = TrainingConfig()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=config.betas, weight_decay=0.0, fused=True
    )

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(input_ids=inputs, labels=targets, shift_labels=targets).loss  # ()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        return loss.item()

    return step


def products(size: ModelConfig, rows: int) -> list[tuple[int, int, int]]:
    """The linear layers of one pass over `rows` tokens, as (rows, inputs, outputs)."""
    D, F_ = size.d_model, size.d_ff
    block = [(D, 3 * D), (D, D), (D, F_), (F_, D)]
    return [
        (rows, i, o)
        for i, o in [(size.embedding_dim, D), *block * size.num_layers, (D, size.vocab_size)]
    ]


def training_limit(precision: str, turns: int) -> float:
    """Seconds of a training step's matrix products: each layer forward, and its two backward;
    attention's two and four.
    """
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    T, H = CONTEXT - 1, SIZE.num_heads
    K = SIZE.d_model // H
    total = 0.0
    for shape in set(products(SIZE, BATCH * T)):
        N, i, o = shape
        x, w, g = (torch.randn(*sides).to(dtype) for sides in ((N, i), (o, i), (N, o)))
        three = alone(lambda x=x, w=w, g=g: (x @ w.T, g @ w, g.T @ x), turns)
        total += three * products(SIZE, BATCH * T).count(shape)
    q, a = torch.randn(BATCH * H, T, K).to(dtype), torch.randn(BATCH * H, T, T).to(dtype)
    six = alone(lambda: (q @ q.mT, a @ q, q @ q.mT, a.mT @ q, a @ q, a.mT @ q), turns)
    return total + six * SIZE.num_layers


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


def measure_training(turns: int) -> dict:
    runs = {
        "ours, bf16": our_step(SIZE, "bf16"),
        "GPT-2 in transformers, bf16": gpt2_step("bf16"),
        "ours, fp32": our_step(SIZE, "fp32"),
        "GPT-2 in transformers, fp32": gpt2_step("fp32"),
        "the earlier deliverable's, fp32": earlier_step(),
    }
    seconds = in_turns(runs, turns, before=memory_of)
    keep_freed_memory()
    shared = in_turns(runs, turns)  # all with our setting
    tokens = BATCH * (CONTEXT - 1)
    limits = {precision: training_limit(precision, turns) for precision in ("bf16", "fp32")}
    rows = {
        name: {"ms": statistics.median(found) * 1e3, "tokens_per_second": rate(tokens, found)}
        for name, found in seconds.items()
    }
    pairs = {
        "bf16, against the earlier deliverable": ("ours, bf16", "the earlier deliverable's, fp32"),
        "bf16, against GPT-2": ("ours, bf16", "GPT-2 in transformers, bf16"),
        "fp32, against GPT-2": ("ours, fp32", "GPT-2 in transformers, fp32"),
    }
    return {
        "rows": rows,
        "limit_ms": {precision: s * 1e3 for precision, s in limits.items()},
        "ratios": {name: ratio(seconds[a], seconds[b]) for name, (a, b) in pairs.items()},
        "ratios_with_our_memory": {
            name: ratio(shared[a], shared[b]) for name, (a, b) in pairs.items()
        },
    }


def steps_to(goal: float, rows: list[dict]) -> float:
    """Where a recorded curve of validation losses first passes a perplexity, on the line between
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


def time_to_goal(training: dict, **vectors) -> dict:
    """Recorded steps times the time of a step as measured now."""
    recorded = load_numbers("tinystories", "04")
    steps = {
        "ours": steps_to(GOAL, recorded["protocol"]["ours in 300 steps"]),
        "the earlier deliverable": float(recorded["steps"]),
    }
    ms = {
        "ours": training["rows"]["ours, bf16"]["ms"],
        "the earlier deliverable": training["rows"]["the earlier deliverable's, fp32"]["ms"],
    }
    seconds = {name: steps[name] * ms[name] / 1e3 for name in steps}
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


def decoding_limit(rows: int, dtype: torch.dtype, turns: int) -> float:
    """Seconds of the linear layers for NEW tokens of `rows` texts, one after the other as a model
    has them; packed or not, whichever is quicker.
    """
    layers = nn.ModuleList(nn.Linear(i, o) for _, i, o in products(SIZE, rows)).to(dtype)
    inputs = [torch.randn(rows, layer.in_features).to(dtype) for layer in layers]  # (rows, in) each

    def run():
        return [layer(x) for layer, x in zip(layers, inputs, strict=True)]

    with torch.inference_mode():
        plain = alone(run, 10 * turns)
        with packed_weights(layers):
            return NEW * min(plain, alone(run, 10 * turns))


def measure_decoding(
    dtype: torch.dtype, turns: int, cases=((1, 1), (20, 1), (64, 1), (5, 5), (5, 10))
) -> list:
    """Tokens of finished texts per second, ours and Hugging Face's `generate`, and the limit, for
    each (prompts, beams).
    """
    tokenizer = WordTokenizer([f"w{i}" for i in range(SIZE.vocab_size - 4)])
    torch.manual_seed(0)
    ours = Decoder(SIZE).eval()
    with torch.no_grad():
        ours.output.bias[tokenizer.eos_id] = -1e9  # no text ends early, in either
    ours, theirs = ours.to(dtype), gpt2().eval().to(dtype)
    numbers = []
    for prompts, beams in cases:
        texts = [" ".join(f"w{i + j}" for j in range(PROMPT)) for i in range(prompts)]
        ids = torch.tensor(
            [[tokenizer.sos_id, *tokenizer.encode(text)] for text in texts]
        )  # (P, 5)
        how = {"strategy": "beam", "num_beams": beams} if beams > 1 else {"strategy": "greedy"}

        def run_ours(texts=texts, how=how):
            found = generate(ours, tokenizer, texts, max_new_tokens=NEW, **how)
            assert all(len(one.ids) == NEW for one in found)

        def run_theirs(ids=ids, beams=beams):
            how = {"max_new_tokens": NEW, "num_beams": beams, "do_sample": False, "pad_token_id": 0}
            found = theirs.generate(ids, attention_mask=torch.ones_like(ids), **how)  # (P, 64)
            assert found.shape[1] == ids.shape[1] + NEW

        seconds = in_turns({"ours": run_ours, "theirs": run_theirs}, turns)
        limit = decoding_limit(prompts * beams, dtype, turns)
        row = {
            "work": f"{prompts} prompt{'s' * (prompts > 1)}, "
            + (f"{beams} beams" if beams > 1 else "greedy")
        }
        row |= {
            "ours": rate(prompts * NEW, seconds["ours"]),
            "Hugging Face": rate(prompts * NEW, seconds["theirs"]),
        }
        row |= {"limit": prompts * NEW / limit, "ratio": ratio(seconds["ours"], seconds["theirs"])}
        numbers.append(row)
    return numbers


def perplexities() -> dict[str, float]:
    """Of the bundled model on bundled validation stories, weights in float32 and in bfloat16."""
    model, tokenizer, _ = load_checkpoint(ROOT / "checkpoints" / "bundled")
    texts = load_stories("bundled", validation=200).validation
    return {
        "fp32": perplexity(model, tokenizer, texts),
        "bf16": perplexity(model.to(torch.bfloat16), tokenizer, texts),
    }


# Vectors ------------------------------------------------------------------------------------------

OURS = """
import resource, sys, time
from helpers.tokenizer import WordTokenizer
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


def measure_scaling(turns: int, quick: bool = False) -> dict[str, dict]:
    """Milliseconds of a training step against batch, context, layers and vocabulary, and of a
    decoding step against the number of tokens in the cache; everything that is not named is the
    default.
    """
    series = {
        "stories in a batch": (lambda n: our_step(SIZE, "bf16", batch=n), (8, 16, 32, 64)),
        "tokens of context": (
            lambda n: our_step(ModelConfig(context_length=n), "bf16", context=n),
            (32, 64, 128, 256),
        ),
        "blocks": (lambda n: our_step(ModelConfig(num_layers=n), "bf16"), (1, 3, 6, 12)),
        "words in the vocabulary": (
            lambda n: our_step(ModelConfig(vocab_size=n), "bf16"),
            (2_500, 5_000, 10_000, 20_000),
        ),
    }
    numbers = {}
    for name, (make, sizes) in series.items():
        sizes = sizes[:2] if quick else sizes
        seconds = in_turns({str(n): make(n) for n in sizes}, turns)
        numbers[name] = {
            "x": list(sizes),
            "ms": [statistics.median(seconds[str(n)]) * 1e3 for n in sizes],
        }
    lengths = (64, 128) if quick else (64, 256, 512, 1024)
    seconds = in_turns({str(n): decoding_step(n) for n in lengths}, 10 * turns)
    numbers["tokens in the cache"] = {
        "x": list(lengths),
        "ms": [statistics.median(seconds[str(n)]) * 1e3 for n in lengths],
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


# On a GPU -----------------------------------------------------------------------------------------


class FusedAttention(MultiHeadAttention):
    """The peer: the same layer with PyTorch's own attention, which returns no weights."""

    def forward(self, x: Tensor, mask: Tensor, remember=None) -> tuple[Tensor, None]:
        B, T, D = x.shape
        q, k, v = (
            self.qkv(x).view(B, T, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        )  # (B, H, T, K)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, K)
        return self.output(mixed.transpose(1, 2).reshape(B, T, D)), None


def fused(size: ModelConfig) -> Decoder:
    model = Decoder(size)
    for block in model.blocks:
        block.attention.__class__ = FusedAttention
    return model


def tflops(size: ModelConfig, batch: int) -> float:
    """10¹² operations of a step's matrix products, forward and backward: three products a layer,
    and 2 operations for each multiplication with its addition.
    """
    tokens = batch * (size.context_length - 1)
    linear = sum(2 * rows * i * o for rows, i, o in products(size, tokens))
    attention = size.num_layers * 2 * 2 * tokens * (size.context_length - 1) * size.d_model
    return 3 * (linear + attention) / 1e12


def measure_gpu(
    turns: int, device: str = "cuda", sizes: dict[str, tuple[ModelConfig, int]] | None = None
) -> dict:
    """Our model beside the same one with PyTorch's attention, both compiled: training, with the
    share of what the device's largest product reaches, and greedy decoding.
    """
    large = ModelConfig(d_model=768, num_layers=12, num_heads=12, d_ff=3072, context_length=256)
    sizes = sizes or {"8.9 M parameters": (SIZE, 512), "100 M parameters": (large, 128)}
    side = 8192 if device == "cuda" else 256
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)  # (N, N)
    numbers: dict = {"product_tflops": 2 * side**3 / alone(lambda: a @ a, 10 * turns) / 1e12}
    for name, (size, batch) in sizes.items():
        steps = {}
        for kind, make in (("ours", Decoder), ("with PyTorch's attention", fused)):
            model = make(size).to(device)
            model.hidden = torch.compile(model.hidden)
            steps[kind] = our_step(size, "bf16", batch, size.context_length, device, model)
        seconds = in_turns(steps, 5 * turns)
        tokens = batch * (size.context_length - 1)
        numbers[name] = {
            "tokens_per_second": {kind: rate(tokens, s) for kind, s in seconds.items()},
            "ratio": ratio(seconds["ours"], seconds["with PyTorch's attention"]),
            "utilisation": tflops(size, batch)
            / statistics.median(seconds["ours"])
            / numbers["product_tflops"],
            "decoded_tokens_per_second": {
                rows: decoded_on(device, size, rows, turns) for rows in (1, 64)
            },
        }
    return numbers


def decoded_on(device: str, size: ModelConfig, rows: int, turns: int) -> float:
    """Greedy tokens per second of our `generate`, to the end of the context."""
    tokenizer = WordTokenizer([f"w{i}" for i in range(size.vocab_size - 4)])
    model = Decoder(size).to(device).eval()
    with torch.no_grad():
        model.output.bias[tokenizer.eos_id] = -1e9
    texts = [" ".join(f"w{i + j}" for j in range(PROMPT)) for i in range(rows)]
    new = size.context_length - PROMPT - 1
    seconds = alone(
        lambda: generate(model, tokenizer, texts, max_new_tokens=new, strategy="greedy"), turns
    )
    return rows * new / seconds


# All of it ----------------------------------------------------------------------------------------


def measure(turns: int, quick: bool = False) -> dict:
    keep_freed_memory()
    device = pick_device()
    numbers: dict = {
        "machine": {
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "system": platform.system(),
        },
        "training": measure_training(turns),
    }
    numbers["to_the_goal"] = time_to_goal(numbers["training"], **({"count": 200} if quick else {}))
    cases = {"cases": ((2, 1), (2, 2))} if quick else {}
    numbers["decoding"] = {
        name: measure_decoding(dtype, turns, **cases)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    numbers["perplexity"] = perplexities()
    numbers["vectors"] = measure_vectors(
        **({"turns": 1, "words": 20_000, "bucket": 10_000} if quick else {})
    )
    numbers["scaling"] = measure_scaling(turns, quick)
    numbers["gpu"] = measure_gpu(turns) if device == "cuda" else None
    return numbers


def show(numbers: dict) -> None:
    """The same as tables."""
    training, goal = numbers["training"], numbers["to_the_goal"]
    times = "{median:.2f} ({low:.2f} to {high:.2f})"
    steps = [
        [
            name,
            f"{row['ms']:.0f}",
            f"{row['tokens_per_second']['median']:,.0f}",
            f"{training['limit_ms'][name[-4:]] / row['ms']:.0%}",
        ]
        for name, row in training["rows"].items()
    ]
    ratios = [
        [name, times.format(**row), times.format(**training["ratios_with_our_memory"][name])]
        for name, row in training["ratios"].items()
    ]
    decoding = [
        [
            f"{row['work']}, {precision}",
            *(f"{row[who]['median']:,.0f}" for who in ("ours", "Hugging Face")),
            f"{row['limit']:,.0f}",
            times.format(**row["ratio"]),
        ]
        for precision, rows in numbers["decoding"].items()
        for row in rows
    ]
    scaling = [
        [name, ", ".join(map(str, row["x"])), ", ".join(f"{ms:.0f}" for ms in row["ms"])]
        for name, row in numbers["scaling"].items()
    ]
    vectors = [
        [name, numbers["vectors"][name]["seconds"], numbers["vectors"][name]["gb"]]
        for name in ("ours", "fasttext")
    ]
    reached = [[name, goal["steps"][name], seconds] for name, seconds in goal["seconds"].items()]
    for rows, columns in (
        (list(numbers["machine"].items()), ["machine", ""]),
        (steps, ["training step", "ms", "tokens/s", "of it matrix products"]),
        (ratios, ["ours", "times as fast (lowest to highest)", "with our memory setting for all"]),
        (reached, [f"to a perplexity of {goal['perplexity']}", "steps", "s"]),
        (decoding, ["decoding", "tokens/s", "Hugging Face", "limit", "times as fast"]),
        (scaling, ["cost against", "", "ms"]),
        (vectors, [f"vectors from {numbers['vectors']['file_gb']:.1f} GB", "s", "GB"]),
        (list(numbers["perplexity"].items()), ["weights", "perplexity"]),
    ):
        print(table(rows, columns), end="\n\n")
    if numbers["gpu"]:
        print(numbers["gpu"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--record", action="store_true", help="renew what the repository carries")
    how.add_argument("--quick", action="store_true", help="one turn of small cases; writes nothing")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="transformers")
    numbers = measure(1 if options.quick else 9, options.quick)
    show(numbers)
    figures = FigureFolder("benchmark")
    if not options.record:
        figures.path = ROOT / "build" / "benchmark"
    if not options.quick:
        figures.save_numbers("speed", numbers)


if __name__ == "__main__":
    main()
