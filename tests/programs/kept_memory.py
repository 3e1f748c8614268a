"""The page faults of twenty steps that need a large block each. "keep": keep freed memory."""

import resource
import sys

import torch

from helpers.support.hardware import keep_freed_memory


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(20):
    before = faults()
    torch.ones(20_000_000)
    print(faults() - before)
