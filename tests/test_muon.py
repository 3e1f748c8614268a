"""Muon: against singular values, against PyTorch's own, and beside AdamW in one optimizer."""

import copy

import pytest
import torch

from helpers.muon import Muon, orthogonalize


@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (1, 6, 20), (1, 20, 6), (3, 6, 6), (3, 5, 9)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_singular_vectors_stay_and_singular_values_come_near_one(shape, dtype):
    torch.manual_seed(0)
    matrices = torch.randn(shape, dtype=dtype)  # (P, N, M)
    u, values, v = torch.linalg.svd(matrices, full_matrices=False)
    u_mine, v_mine = u.mT @ orthogonalize(matrices) @ v.mT, torch.eye(values.shape[-1], dtype=dtype)
    found = u_mine.diagonal(dim1=-2, dim2=-1)  # (P, n)
    assert (u_mine * (1 - v_mine)).abs().max() < 1e-4, "what is not on the diagonal is new"
    assert found.min() > 0.5
    assert found.max() < 1.3
    assert orthogonalize(matrices).dtype == dtype
    assert torch.allclose(orthogonalize(1e4 * matrices), orthogonalize(matrices), atol=1e-3)


def test_a_matrix_of_zeros_stays_finite():
    assert torch.equal(orthogonalize(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6))


def test_under_autocast_it_multiplies_in_bfloat16():
    matrix = torch.randn(1, 16, 24, generator=torch.manual_seed(0))  # (1, N, M)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = orthogonalize(matrix)  # (1, N, M)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert 0 < (rounded - orthogonalize(matrix)).abs().max() < 0.05


def test_steps_are_those_of_pytorchs_muon():
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(24, 40))  # (N, M)
    theirs = copy.deepcopy(ours)
    group = {"params": [ours], "orthogonal": 1, "weight_decay": 0.1}
    how = {"lr": 0.02, "weight_decay": 0.1}
    peers = (
        Muon([group], lr=how["lr"]),
        torch.optim.Muon([theirs], momentum=0.95, adjust_lr_fn="match_rms_adamw", **how),
    )
    for _ in range(5):
        gradient = torch.randn(24, 40)  # (N, M)
        before = ours.detach().clone()  # (N, M)
        for parameter, optimizer in zip((ours, theirs), peers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
        moved = (ours - before).norm()  # ()
        # PyTorch's multiplies in bfloat16, of which 5 · 3 products keep two digits.
        assert (ours - theirs).norm() < 0.1 * moved


def test_matrices_one_above_the_other_are_stepped_one_by_one():
    torch.manual_seed(0)
    whole = torch.nn.Parameter(torch.randn(12, 6))  # (N, M)
    parts = [torch.nn.Parameter(part.clone()) for part in whole.detach().chunk(3)]
    whole.grad = torch.randn(12, 6)  # (N, M)
    for part, grad in zip(parts, whole.grad.chunk(3), strict=True):
        part.grad = grad.clone()
    groups = [{"params": [part], "orthogonal": 1} for part in parts]
    Muon([{"params": [whole], "orthogonal": 3}], lr=0.1, weight_decay=0.0).step()
    Muon(groups, lr=0.1, weight_decay=0.0).step()
    assert torch.allclose(whole, torch.cat(parts), atol=1e-6)


def test_what_is_not_orthogonal_is_adamws():
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(6, 4))  # (N, M)
    theirs, other = copy.deepcopy(ours), torch.nn.Parameter(torch.randn(5, 5))
    how = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.1}
    groups = [{"params": [ours], "orthogonal": 0}, {"params": [other], "orthogonal": 1}]
    optimizer, adamw = Muon(groups, **how), torch.optim.AdamW([theirs], **how)
    for _ in range(3):
        ours.grad, other.grad = torch.randn(6, 4), torch.randn(5, 5)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        adamw.step()
    assert torch.equal(ours, theirs)
    assert "exp_avg" not in optimizer.state[other]
