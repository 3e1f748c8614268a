"""Training runs that are killed with SIGKILL at random moments, and while they save, end as if
nothing had happened.
"""

import json
import signal

import pytest
import torch
from safetensors.torch import load_file
from support import cases, start

from helpers.checkpoints import load_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.torture,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL"),
]


def test_killed_runs_end_as_if_nothing_had_happened(tmp_path):
    counts = cases(4, 20), cases(5, 25), cases(6, 60)  # deaths at random, while saving; epochs
    done = start("killed_runs", tmp_path, *counts, timeout=500)
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
    model, tokenizer, metadata = load_checkpoint(whole / "kept")
    again, same_tokenizer, same_metadata = load_checkpoint(parts / "kept")
    assert metadata == same_metadata == {"step": 8 * cases(6, 60)}
    assert tokenizer.words == same_tokenizer.words
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
