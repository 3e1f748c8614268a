"""Train for 50 steps, alone or under torchrun: train_in_processes.py ACCUMULATION_STEPS FOLDER.

The first process prints the columns of the history as JSON.
"""

import json
import os
import sys
from dataclasses import replace

import torch
import torch.distributed as dist
from support import QUICK, TOKENIZER, made_model, made_stories

from helpers.support.hardware import rank_and_processes, sum_over_processes
from helpers.training import train

if "WORLD_SIZE" in os.environ:
    dist.init_process_group("gloo")
rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
assert rank_and_processes() == (rank, processes)
large = 2.0**53 + 2 * rank  # float32 could not hold it
sums = sum_over_processes(torch.device("cpu"), large, 1)
assert sums == [sum(2.0**53 + 2 * number for number in range(processes)), processes]

often = {"validate_every": 1, "epochs": 100, "max_steps": 50}
how = {"accumulation_steps": int(sys.argv[1]), "folder": sys.argv[2], "recompute_segments": (2,)}
config = replace(QUICK, batch_size=4, weight_decay=0.1, **often, **how)
seen = []
model = made_model(seed=rank).double()  # the others' weights do not matter
history = train(model, TOKENIZER, made_stories(77), config, on_validation=lambda *_: seen.append(1))
assert len(seen) == (50 if rank == 0 else 0)
if rank == 0:
    names = ("step", "tokens", "train_loss", "validation_loss")
    print(json.dumps([history.column(name) for name in names]))
if dist.is_initialized():
    dist.destroy_process_group()
