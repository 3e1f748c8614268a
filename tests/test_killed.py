"""Training runs that are killed with SIGKILL at random moments, and while they save, end as if
nothing had happened.
"""

import json
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torture import cases

from helpers.training import load_checkpoint

pytestmark = [
    pytest.mark.torture,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL"),
]

# One process imports everything once; each run is a fork of it, whose only thread has done nothing
# yet.
RUNS = """
import json, os, random, signal, sys, time
from dataclasses import replace
from pathlib import Path
sys.path[:0] = ["tests", "."]
import torch
torch.set_num_threads(1)
from test_training import QUICK, TOKENIZER, made_model, made_stories
from helpers import files
from helpers.training import _read_run, load_checkpoint, save_checkpoint, train

folder, (at_random, while_saving, epochs) = Path(sys.argv[1]), map(int, sys.argv[2:])
config = replace(QUICK, epochs=epochs, dropout=0.1, weight_decay=0.1, checkpoint_every=1)
stories = made_stories()

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

MOMENTS = {
    "before the disk has it": (os, "fsync", False),
    "after the disk has it": (os, "fsync", True),
    "after its name is set": (Path, "replace", True),
    "before a folder's name": (Path, "rename", False),
    "after a folder's name": (Path, "rename", True),
}

def kill_at_the(number, name):
    # The process dies before, or after, the number-th call of one of the steps by which a file
    # or folder gets its name.
    owner, attribute, after = MOMENTS[name]
    original, calls = getattr(owner, attribute), []

    def deadly(*args):
        calls.append(1)
        if len(calls) == number and not after:
            die()
        result = original(*args)
        if len(calls) == number:
            die()
        return result

    setattr(owner, attribute, deadly)

def run(place, prepare=lambda: None):
    # A child trains, from the file to resume from where there is one, and keeps a checkpoint at
    # each validation.
    child = os.fork()
    if child:
        return child
    try:
        prepare()
        def keep(row, model):
            save_checkpoint(place / "kept", model, TOKENIZER, {"step": row["step"]})

        resume = place if (place / "resume.safetensors").exists() else None
        model = made_model(seed=2 if resume else 0)
        train(model, TOKENIZER, stories, replace(config, folder=str(place)),
              resume_from=resume, on_validation=keep)
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
        child = run(folder / "parts", lambda: kill_at_the(random.randint(1, 12), name))
    status = os.waitpid(child, 0)[1]
    deaths.append([name, os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL])
    if (folder / "parts" / "resume.safetensors").exists():
        steps.append(_read_run(folder / "parts").state["step"])  # whole
    kept = folder / "parts" / "kept"
    if kept.exists() or list(kept.parent.glob(".kept.*.new")):
        load_checkpoint(kept)  # whole, and found
assert os.waitpid(run(folder / "parts"), 0)[1] == 0
print(json.dumps({"deaths": deaths, "steps": steps}))
"""


def test_killed_runs_end_as_if_nothing_had_happened(tmp_path):
    counts = cases(4, 20), cases(5, 25), cases(6, 60)  # deaths at random, while saving; epochs
    command = [sys.executable, "-c", RUNS, str(tmp_path), *map(str, counts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert all(killed for _, killed in told["deaths"]), told
    assert told["steps"] == sorted(told["steps"])  # nothing that was saved is lost
    assert len(set(told["steps"])) > 2

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    one, other = load_file(whole / "resume.safetensors"), load_file(parts / "resume.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)  # weights and optimizer
    assert (whole / "log.csv").read_bytes() == (parts / "log.csv").read_bytes()
    (model, _, metadata), (again, _, metadata_again) = (
        load_checkpoint(whole / "kept"),
        load_checkpoint(parts / "kept"),
    )
    assert metadata == metadata_again
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )
