"""Runs whose results are recorded: those that a file lacks are made, several at a time."""

import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.notebook import FigureFolder, load_numbers
from helpers.support.hardware import pick_device, pick_precision
from timing import machine


def complete(
    corpus: str,
    name: str,
    work: Callable,
    todo: Iterable[tuple[str, int]],
    jobs: int,
    made_from: dict[str, str],
) -> dict:
    """Make the runs that `<name>.json` lacks; write it after each; return all that it holds then.

    Args:
        work: work(key, seed) makes a run, and returns its numbers. A function of a module, or a
            partial of one, because other processes call it.
        todo: the (key, seed) of all runs.
        jobs: how many at a time.
        made_from: digests of stories, tokenizer and recipe. Runs that were made from others do not
            count.
    """
    figures, known = FigureFolder(corpus), {"runs": {}}
    with suppress(FileNotFoundError):
        known |= load_numbers(corpus, name)
    if known.get("made_from") != made_from:
        known |= {"runs": {}, "made_from": made_from}
    missing = [run for run in todo if str(run[1]) not in known["runs"].get(run[0], {})]
    threads = max(1, torch.get_num_threads() // jobs)
    pool = {"initializer": torch.set_num_threads, "initargs": (threads,)}
    with ProcessPoolExecutor(jobs, get_context("spawn"), **pool) as processes:
        running = {processes.submit(work, *run): run for run in missing}
        failed = None
        for done in as_completed(running):
            key, seed = running[done]
            if done.exception():  # the others are recorded first
                failed = done.exception()
                print(f"{key}, seed {seed}: {failed!r}", flush=True)
                continue
            known["runs"].setdefault(key, {})[str(seed)] = done.result() | {"device": processor()}
            figures.save_numbers(name, known)
            print(f"{key}, seed {seed}: recorded", flush=True)
    if failed:
        raise failed
    return known


def processor() -> str:
    """What runs are made on: the GPU or the processor, and the precision."""
    device = pick_device()
    on = torch.cuda.get_device_name() if device == "cuda" else machine(os.getloadavg()[0])
    return f"{on if device == 'cuda' else on['processor']}, {pick_precision(device)}"
