"""The chunked output layer and loss against PyTorch's cross-entropy."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.memory import output_loss


def relative_error(ours, reference):
    return ((ours - reference).abs().max() / reference.abs().max().clamp_min(1e-300)).item()


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 40), vocab=st.integers(3, 30), chunk=st.integers(1, 50), seed=st.integers(0, 10**6))
def test_loss_and_gradients_equal_cross_entropy(rows, vocab, chunk, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((rows, 8), (vocab, 8), (vocab,))
    )
    targets = torch.randint(0, vocab, (rows,), generator=generator)  # id 0 is ignored
    results = []
    for chunked in (True, False):
        leaves = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
        if chunked:
            loss = output_loss(*leaves, targets, ignore_index=0, rows_per_chunk=chunk)
        else:
            loss = F.cross_entropy(F.linear(*leaves), targets, ignore_index=0, reduction="sum")
        (0.37 * loss).backward()
        results.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    for ours, reference in zip(*results, strict=True):
        assert relative_error(ours, reference) < 1e-12 or (ours - reference).abs().max() < 1e-14


def test_bf16_stays_close_to_fp32():
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(64, 32), torch.randn(100, 32) / 6, torch.zeros(100)
    targets = torch.randint(1, 100, (64,))
    exact = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")
    with torch.autocast("cpu", torch.bfloat16):
        loss = output_loss(hidden.requires_grad_(), weight, bias, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=2e-3)


def test_frozen_parameters_get_no_gradient():
    hidden, weight, bias = torch.randn(4, 8), torch.randn(5, 8), torch.zeros(5, requires_grad=True)
    output_loss(hidden, weight, bias, torch.ones(4, dtype=torch.long)).backward()
    assert hidden.grad is None
    assert weight.grad is None
    assert bias.grad.abs().sum() > 0


def test_shapes_that_disagree_are_refused():
    with pytest.raises(ValueError, match="shapes disagree"):
        output_loss(torch.randn(4, 8), torch.randn(5, 7), torch.zeros(5), torch.ones(4, dtype=torch.long))
