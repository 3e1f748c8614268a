"""Muon: a matrix's momentum, made orthogonal, is its step; AdamW moves everything else.

Shape comments name the sizes: N rows and M columns of a matrix, P matrices.
"""

import torch
from torch import Tensor

MOMENTUM = 0.95
ITERATIONS = 5


def orthogonalize(matrices: Tensor) -> Tensor:  # (P, N, M) -> (P, N, M)
    """The same singular vectors, and values between about 0.7 and 1.2, unless they were tiny.

    A Newton–Schulz iteration applies the polynomial ax + bx³ + cx⁵ to every singular value by
    matrix products alone, in bfloat16 under autocast. These a, b and c stop short of 1, but lift
    small values fast. Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural
    networks".
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices  # (P, n, m), n the smaller
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-12)  # (P, n, m), values at most 1
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    for _ in range(ITERATIONS):
        xx = x @ x.mT  # (P, n, n)
        both = torch.baddbmm(xx, xx, xx, beta=b, alpha=c)  # (P, n, n), b · xx + c · xx @ xx
        x = torch.baddbmm(x, both, x, beta=a)  # (P, n, m), a · x + both @ x
    return (x.mT if tall else x).to(matrices.dtype)  # (P, N, M)


class Muon(torch.optim.AdamW):
    """AdamW, and Muon for the groups that are `orthogonal`.

    Such a group names the number of equal matrices that its parameters hold one above the other;
    other groups have 0 there. Jordan et al. 2024, with Nesterov's momentum. A step is as long as
    AdamW's, in the mean: Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2.
    """

    @torch.no_grad()
    def step(self) -> None:
        groups = self.param_groups
        for group in groups:
            for p in group["params"] if group["orthogonal"] else ():  # (N, M)
                if not self.state[p]:
                    # AdamW asks for everybody's `step` when it loads a saved state.
                    self.state[p] = {"momentum": torch.zeros_like(p), "step": torch.tensor(0.0)}
                momentum = self.state[p]["momentum"].lerp_(p.grad, 1 - MOMENTUM)  # (N, M)
                ahead = p.grad.lerp(momentum, MOMENTUM)  # (N, M), one step further
                parts = ahead.unflatten(0, (group["orthogonal"], -1))  # (P, N / P, M)
                length = group["lr"] * 0.2 * max(parts.shape[1:]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(orthogonalize(parts).flatten(0, 1), alpha=length)
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        super().step()
        self.param_groups = groups
