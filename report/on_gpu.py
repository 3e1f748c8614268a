"""What benchmark.py measures on a GPU: training, decoding, checkpointing, agreement with the CPU.

It needs torch, numpy, safetensors and transformers only, and ends within its budget of seconds.
The parts run in the order of their worth. A part for which no time is left is named in the file
under `left_out`, and one that breaks off with an error under `failed`; the others still count.
"""

import json
import math
import signal
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch.nn.parallel import DistributedDataParallel

from helpers.checkpoints import load_checkpoint
from helpers.memory import measure_peak_memory
from helpers.model import Decoder, ModelConfig
from helpers.stories import load_stories
from helpers.support.checks import require
from helpers.training import TrainingConfig, encode_stories, make_optimizer, optimizer_step
from peers import (
    BATCH,
    GPT2,
    NEW,
    PROMPT,
    WHO,
    checkpointing_pass,
    decoding_models,
    decoding_row,
    fused,
    gpt2_step,
    our_step,
    products,
    some_ids,
)
from timing import ROOT, alone, in_turns, machine, rate, ratio, save, unsteady

BUDGET = 320  # seconds for all parts; starting and ending take the rest of the six minutes
COMPILING = 100  # seconds for one model
EPOCH = 10_000  # stories
CLOSE = 1e-4  # between the logits of a GPU and of the CPU
LARGE = ModelConfig(d_model=768, num_layers=12, num_heads=12, d_ff=3072, context_length=256)
CHECKPOINTED = ModelConfig(dropout=0.1)
SIZES = {"the course's size": (ModelConfig(), 512), "100 M parameters": (LARGE, 128)}


class OutOfTime(BaseException):
    """No Exception: torch.compile would take it for an error of its own."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime inside when the seconds are over, as soon as Python is at work again."""

    def stop(*_):
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# The parts ----------------------------------------------------------------------------------------


def agreement(device: str) -> dict:
    """The largest difference between the logits of this device and of the CPU, in float32."""
    model, tokenizer, _ = load_checkpoint(ROOT / "checkpoints" / "bundled")
    texts = load_stories("bundled", train=1, validation=32).validation
    ids = encode_stories(tokenizer, texts, model.config.context_length).long()  # (32, T)
    with torch.inference_mode():
        expected = model.eval()(ids)  # (32, T, V)
        found = model.to(device)(ids.to(device)).cpu()  # (32, T, V)
    require(found.isfinite().all(), "the logits are not finite", FloatingPointError)
    return {"largest_difference": (found - expected).abs().max().item(), "allowed": CLOSE}


def checkpointing(device: str, name: str, size: ModelConfig, turns: int) -> list[dict]:
    """Peak memory and time of a forward and backward pass, with and without checkpointing, as rows
    of the table that notebook 06 shows.
    """
    model = Decoder(size).to(device).train()
    ids = some_ids(size, BATCH, device)  # (B, T)
    segments = (size.num_layers,)
    ways = {
        "all kept": partial(checkpointing_pass, model, ids, ()),
        "ours, a segment a block": partial(checkpointing_pass, model, ids, segments),
        "PyTorch's, a segment a block": partial(checkpointing_pass, model, ids, (), pytorchs=True),
    }
    peaks = {}
    for way, run in ways.items():
        run()  # the first pass sets up the libraries' own memory
        model.zero_grad(set_to_none=True)
        peaks[way] = measure_peak_memory(run, device)
    found = in_turns(ways, turns)
    seconds = {way: statistics.median(one) for way, one in found.items()}
    return [
        {
            "way": way,
            "peak, MB": f"{peaks[way] / 1e6:.0f}",
            "seconds per epoch": f"{seconds[way] * math.ceil(EPOCH / BATCH):.1f}",
            "of the time": f"{seconds[way] / seconds['all kept']:.2f}",
            "device": f"{name}, fp32",
        }
        for way in ways
    ]


def largest_product(device: str, sides: tuple[int, ...], turns: int) -> dict:
    """10¹² operations a second of the fastest square bf16 product, which stands for the device."""
    found = {}
    for side in sides:
        a = torch.randn(side, side, device=device, dtype=torch.bfloat16)  # (N, N)
        found[2 * side**3 / alone(lambda a=a: a @ a, turns) / 1e12] = side
    return {
        "tflops": max(found),
        "side": found[max(found)],
        "precision": "bf16",
        "utilisation_is": "model FLOPs a second, as a share of this product's",
    }


def tflops(size: ModelConfig, batch: int, projection: bool = True) -> float:
    """10¹² model FLOPs of a training step: three products a layer, forward and backward, with 2
    operations for each multiplication and its addition; attention's scores in full.
    """
    tokens = batch * (size.context_length - 1)
    linear = sum(2 * rows * i * o for rows, i, o in products(size, tokens, projection))
    attention = size.num_layers * 2 * 2 * tokens * (size.context_length - 1) * size.d_model
    return 3 * (linear + attention) / 1e12


def compiled_step(size: ModelConfig, batch: int, device: str) -> Callable[[], object]:
    """Our step, its model compiled; it has been run, so it is ready."""
    model = Decoder(size)
    model.hidden = torch.compile(model.hidden)
    step = our_step(size, "bf16", batch, device, model)
    step()
    return step


def training(
    device: str,
    size: ModelConfig,
    batch: int,
    compiled: Callable[[], object] | None,
    product_tflops: float | None,
    turns: int,
) -> dict:
    """Tokens a second in bf16 of ours, of ours compiled (unless None), and of the peers."""
    steps = {
        "ours": our_step(size, "bf16", batch, device),
        "ours, with PyTorch's attention": our_step(size, "bf16", batch, device, fused(size)),
        GPT2: gpt2_step(size, "bf16", batch, device),
    }
    if compiled:
        steps["ours, compiled"] = compiled
    seconds = in_turns(steps, turns)
    rows = {}
    for name, found in seconds.items():
        per_second = tflops(size, batch, name != GPT2) / statistics.median(found)
        rows[name] = {
            "ms": statistics.median(found) * 1e3,
            "tokens_per_second": rate(batch * (size.context_length - 1), found),
            "utilisation": product_tflops and per_second / product_tflops,
        }
    return {
        "batch": batch,
        "tokens": size.context_length - 1,
        "parameters": Decoder(size).num_parameters(),
        "precision": "bf16",
        "rows": rows,
        "ratios": {
            f"{name}, against GPT-2": ratio(found, seconds[GPT2])
            for name, found in seconds.items()
            if name != GPT2
        },
    }


def decoding(device: str, size: ModelConfig, turns: int) -> list[dict]:
    """Greedy, in bfloat16, for 1 and 64 rows: what `decoding_row` gives."""
    models = decoding_models(size, torch.bfloat16, device)
    new = min(NEW, size.context_length - PROMPT - 1)
    return [decoding_row(models, prompts, 1, new, turns) for prompts in (1, 64)]


def two_processes(device: str, size: ModelConfig, batch: int, turns: int) -> dict | str:
    """One step of two processes beside one of a single process with twice the accumulation, in
    float64; and the tokens a second of the two.
    """
    if device == "cuda" and torch.cuda.device_count() < 2:
        return "one device"
    with tempfile.TemporaryDirectory() as folder:
        group = processes.spawn(
            one_of_two, (device, size, batch, turns, folder), nprocs=2, join=False, daemon=True
        )
        try:
            while not group.join(timeout=1):
                pass
        finally:  # also when the time is over
            for process in group.processes:
                process.kill()
        return json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))


def one_of_two(
    rank: int, device: str, size: ModelConfig, batch: int, turns: int, folder: str
) -> None:
    """What each of the two processes does; the first writes what was found."""
    if device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    parameters = one_step(size, device, together=True)  # (P,)
    model = DistributedDataParallel(Decoder(size).to(device))
    step = our_step(size, "bf16", 2 * batch, device, model)
    seconds = in_turns({"": step}, turns, longest=math.inf)[""]  # as many turns in both
    dist.destroy_process_group()
    if rank:
        return
    found = {
        "largest_difference": (parameters - one_step(size, device)).abs().max().item(),
        "allowed": 1e-9,
        "stories_in_each": batch,
        "tokens_per_second": rate(2 * batch * (size.context_length - 1), seconds),
    }
    Path(folder, "found.json").write_text(json.dumps(found), encoding="utf-8")


def one_step(size: ModelConfig, device: str, together: bool = False) -> torch.Tensor:  # (P,)
    """The parameters after a step on eight stories, two at a time: in two mini-batches of each
    process if two work together, in four otherwise.
    """
    torch.manual_seed(0)
    model = Decoder(size).double().to(device).train()
    config = TrainingConfig(batch_size=2)
    ids = torch.randint(4, size.vocab_size, (8, size.context_length)).to(device)  # (8, T)
    trained = DistributedDataParallel(model) if together else model
    optimizer_step(trained, make_optimizer(model, config), ids, 1e-3, config, "fp32")
    return torch.cat([p.detach().flatten() for p in model.parameters()]).cpu()  # (P,)


# All of it ----------------------------------------------------------------------------------------


class Parts:
    """Runs one part after the other within a budget of seconds.

    numbers: gets `left_out` and `failed`, {part: why}, and the seconds so far.
    keep: called with "speed_gpu" and the numbers before each part.
    """

    def __init__(self, numbers: dict, seconds: float, keep: Callable[[str, dict], object]):
        self.numbers, self.keep, self.started = numbers, keep, time.monotonic()
        self.deadline = self.started + seconds
        numbers |= {"budget_seconds": seconds, "left_out": {}, "failed": {}}

    def run(self, name: str, part: Callable[[], object], seconds: float = math.inf):
        """What the part returns; None if it fails, or takes longer than this or than is left."""
        allowed = min(seconds, self.deadline - time.monotonic())
        self.note(name)
        if allowed <= 0:
            self.numbers["left_out"][name] = "the time was over before it began"
            return None
        try:
            with time_limit(allowed):
                return part()
        except OutOfTime:
            self.numbers["left_out"][name] = f"not done within {allowed:.0f} s"
        except Exception as error:
            traceback.print_exc()
            self.numbers["failed"][name] = f"{type(error).__name__}: {error}"[:500]
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return None

    def note(self, what: str) -> None:
        """Say how far it is, and keep what is there: a run that is killed loses one part."""
        self.numbers["seconds"] = time.monotonic() - self.started
        print(f"{self.numbers['seconds']:4.0f} s  {what}", flush=True)
        self.keep("speed_gpu", self.numbers)


def measure(
    load: float,
    keep: Callable[[str, dict], object],
    device: str = "cuda",
    sizes: Mapping[str, tuple[ModelConfig, int]] = SIZES,
    checkpointed: ModelConfig = CHECKPOINTED,
    sides: tuple[int, ...] = (4096, 8192, 16384),
    turns: int = 20,
    seconds: float = BUDGET,
) -> dict:
    """The numbers of speed_gpu.json.

    Args:
        load: the load average before the start.
        keep: called with a file's name and its numbers, again and again as they become more.
        device: "cuda", or "cpu" to try all of it in small.
        sizes: models, each with the number of stories in its batch.
        checkpointed: the model whose memory is measured, for 06_gpu.json.
        sides: of the products among which the fastest is looked for.
        turns: of training; decoding has half of them.
        seconds: for all parts together.
    """
    torch.set_float32_matmul_precision("highest")  # no TF32: what is called float32 is float32
    numbers: dict = {"machine": machine(load), "training": {}, "decoding": {}}
    name = torch.cuda.get_device_name() if device == "cuda" else numbers["machine"]["processor"]
    numbers["machine"] |= {"device": name, "cuda": torch.version.cuda}
    parts = Parts(numbers, seconds, keep)
    numbers["logits"] = parts.run("logits", partial(agreement, device))
    how = device, name, checkpointed, turns
    if rows := parts.run("checkpointing", partial(checkpointing, *how)):
        keep("06_gpu", {"checkpointing": rows, "name": name})
    product = parts.run("product", partial(largest_product, device, sides, turns))
    numbers["product"] = product
    for label, (size, batch) in sizes.items():
        numbers["decoding"][label] = parts.run(
            f"decoding, {label}", partial(decoding, device, size, max(1, turns // 2))
        )
        how = size, batch, device
        compiled = parts.run(f"compiling, {label}", partial(compiled_step, *how), COMPILING)
        how = device, size, batch, compiled, product and product["tflops"], turns
        numbers["training"][label] = parts.run(f"training, {label}", partial(training, *how))
        del compiled, how
        torch.compiler.reset()
    size, batch = next(iter(sizes.values()))
    how = device, size, batch, turns
    numbers["two_processes"] = parts.run("two processes", partial(two_processes, *how))
    for part in ("logits", "two_processes"):
        found = numbers[part]
        if isinstance(found, dict) and not found["largest_difference"] <= found["allowed"]:
            numbers["failed"][part] = f"they differ by {found['largest_difference']:.1e}"
    numbers["machine"]["busy"] += unsteady(rates_of(numbers))
    parts.note("done")
    return numbers


def rates_of(numbers: dict) -> dict[str, dict[str, float]]:
    """The rate of every run in training and decoding, by name."""
    rates = {}
    for label, found in numbers["training"].items():
        for name, row in (found or {"rows": {}})["rows"].items():
            rates[f"{label}, {name}"] = row["tokens_per_second"]
    for label, rows in numbers["decoding"].items():
        for row in rows or []:
            for who in WHO:
                rates[f"{label}, {row['work']}, {who}"] = row[who]
    return rates


def main(load: float, record: bool) -> None:
    """Measure, and write both files. Exits with an error if there is no GPU or a part failed."""
    if not torch.cuda.is_available():
        sys.exit("--gpu measures a CUDA GPU, and PyTorch finds none here")
    warnings.filterwarnings("ignore", module="transformers")
    numbers = measure(load, lambda name, found: save(name, found, record))
    print(json.dumps(numbers, indent=1))
    for name, why in (numbers["left_out"] | numbers["failed"]).items():
        print(f"{name}: {why}")
    if numbers["failed"]:
        sys.exit(1)
