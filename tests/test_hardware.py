"""The device, the precision, modes of a model, and a process that trains alone."""

import re

import pytest
import torch
from support import QUICK, made_model

from helpers.support import hardware
from helpers.support.hardware import (
    autocast,
    evaluating,
    pick_device,
    pick_precision,
    rank_and_processes,
    sum_over_processes,
)

ABSENT = ["tpu", ""] + ["mps"] * (not torch.backends.mps.is_available())


@pytest.mark.parametrize(
    ("cuda", "mps", "picked"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_first_device_that_is_there_is_picked(monkeypatch, cuda, mps, picked):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device() == pick_device("auto") == picked
    assert pick_device("cpu") == "cpu"
    there = [kind for kind, is_there in (("cuda", cuda), ("mps", mps), ("cpu", True)) if is_there]
    for kind in ("cuda", "mps"):
        if kind in there:
            assert pick_device(kind) == kind
            continue
        message = f"device={kind!r} is not on this machine: choose 'auto', or one of {there}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            pick_device(kind)


def test_a_numbered_device_is_there_if_its_kind_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("cuda:1") == "cuda:1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^device='cuda:1' is not on this machine"):
        pick_device("cuda:1")


@pytest.mark.parametrize("device", ABSENT)
def test_a_device_that_is_not_there_is_refused(device):
    message = f"device={device!r} is not on this machine: choose 'auto', or one of"
    with pytest.raises(ValueError, match=message):
        pick_device(device)


def test_precision_is_one_that_the_hardware_gains_by():
    assert pick_precision("cpu") in ("bf16", "fp32")
    assert pick_precision("mps") == "fp32"


@pytest.mark.parametrize(
    ("fp32", "bf16", "picked"), [(1.29, 1.0, "fp32"), (1.31, 1.0, "bf16"), (1.0, 50.0, "fp32")]
)
def test_a_processor_is_given_bf16_if_that_is_three_tenths_faster(monkeypatch, fp32, bf16, picked):
    """By the fastest of several products: the first may be slow for other reasons."""
    timed = []

    def repeat(product, number, repeat):
        timed.append(product().dtype)
        best = {torch.float32: fp32, torch.bfloat16: bf16}[timed[-1]]
        return [100.0, best, best + 1]

    monkeypatch.setattr("timeit.repeat", repeat)
    assert pick_precision("cpu") == picked
    assert timed == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize(("native", "picked"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_is_given_bf16_if_it_has_it_natively(monkeypatch, native, picked):
    def supported(including_emulation=True):
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert pick_precision("cuda") == picked


def product_type(how):
    a = torch.ones(2, 2)  # (2, 2)
    with how:
        return (a @ a).dtype


def test_autocast_is_bfloat16_or_nothing(monkeypatch):
    assert product_type(autocast("cpu", "bf16")) == torch.bfloat16
    assert product_type(autocast("cpu", "fp32")) == torch.float32
    for faster, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        monkeypatch.setattr(hardware, "pick_precision", lambda device, faster=faster: faster)
        assert product_type(autocast("cpu", "auto")) == product_type(autocast("cpu")) == dtype
        assert product_type(autocast("cpu", "fp32")) == torch.float32  # what is named is not probed
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_restores_the_mode_after_an_error_too(training):
    model = made_model(dropout=0.5).train(training)
    ids = torch.tensor([[1, 5, 6, 7]])
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert torch.equal(model(ids), model(ids))  # no dropout
    assert all(module.training == training for module in model.modules())
    with pytest.raises(RuntimeError, match=r"^inside$"), evaluating(model):
        raise RuntimeError("inside")
    assert all(module.training == training for module in model.modules())


def test_a_process_alone_is_the_first_of_one_and_its_sums_are_its_own():
    """Two of them are in test_training.py."""
    assert rank_and_processes() == (0, 1)
    assert sum_over_processes(torch.device(QUICK.device), 1.5, 2, 0.1) == [1.5, 2, 0.1]
    assert sum_over_processes(torch.device(QUICK.device)) == []
