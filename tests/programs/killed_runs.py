"""Runs that die of SIGKILL: killed_runs.py FOLDER AT_RANDOM WHILE_SAVING EPOCHS.

FOLDER/whole is a run that nobody disturbs. FOLDER/parts is the same run, killed AT_RANDOM times at
a random moment and WHILE_SAVING times in a step by which a file gets its name. Prints as JSON how
each died, and which step was saved by then.

One process imports everything once. Each run is a fork of it, whose only thread has done nothing
yet.
"""

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from support import QUICK, TOKENIZER, made_model, made_stories

from helpers.checkpoints import RUN_FILE, load_checkpoint, read_run, save_checkpoint
from helpers.training import train

torch.set_num_threads(1)
folder, (at_random, while_saving, epochs) = Path(sys.argv[1]), map(int, sys.argv[2:])
config = replace(QUICK, epochs=epochs, dropout=0.1, weight_decay=0.1, save_every=1)
stories = made_stories()

# The steps of a write, and whether the process dies before or after one.
MOMENTS = {
    "before the disk has it": (os, "fsync", False),
    "after the disk has it": (os, "fsync", True),
    "before its name is set": (Path, "replace", False),
    "after its name is set": (Path, "replace", True),
}


def kill_at_the(number, name):
    """Let the number-th call of a step be the last thing that this process does."""
    owner, attribute, after = MOMENTS[name]
    original, calls = getattr(owner, attribute), []

    def deadly(*args):
        calls.append(1)
        if len(calls) == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, attribute, deadly)


def run(place, prepare=lambda: None):
    """Let a child train, from the saved run if there is one, and save a checkpoint at each
    validation. Returns the child's process id.
    """
    if child := os.fork():
        return child

    def keep(row, model):
        save_checkpoint(place / "kept", model, TOKENIZER, {"step": row["step"]})

    try:
        prepare()
        begun = place if (place / RUN_FILE).exists() else None
        model, here = made_model(seed=2 if begun else 0), replace(config, folder=str(place))
        train(model, TOKENIZER, stories, here, resume_from=begun, on_validation=keep)
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)


begin = time.monotonic()
assert os.waitpid(run(folder / "whole"), 0)[1] == 0
takes = time.monotonic() - begin

random.seed(0)
plan = [None] * at_random + [list(MOMENTS)[i % len(MOMENTS)] for i in range(while_saving)]
random.shuffle(plan)
deaths, steps = [], []
for name in plan:
    if name is None:
        child = run(folder / "parts")
        time.sleep(random.uniform(0, takes / (2 * len(plan))))
        os.kill(child, signal.SIGKILL)
    else:
        child = run(folder / "parts", partial(kill_at_the, random.randint(1, 12), name))
    status = os.waitpid(child, 0)[1]
    deaths.append([name, os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL])
    if (folder / "parts" / RUN_FILE).exists():
        steps.append(read_run(folder / "parts")[1].step)  # whole
    if (folder / "parts" / "kept.safetensors").exists():
        load_checkpoint(folder / "parts" / "kept")  # whole
assert os.waitpid(run(folder / "parts"), 0)[1] == 0
print(json.dumps({"deaths": deaths, "steps": steps}))
