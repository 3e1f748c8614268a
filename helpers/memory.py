"""Memory tricks, each with a backward pass written by hand: so far the output layer and its loss, a few rows at a time."""

import torch
import torch.nn.functional as F
from torch import Tensor


class _OutputLoss(torch.autograd.Function):
    """Sum of cross-entropies of `hidden @ weight.T + bias`, without ever holding all its (N, V) logits.

    The loss is one number, so its gradient is known up to a factor as soon as a chunk of logits is: softmax minus one-hot.
    The forward pass therefore computes the gradients too, and the backward pass only scales them.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, ignore_index, rows_per_chunk):
        device = hidden.device.type
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        x, w, b = hidden.to(low), weight.to(low), bias.to(low)  # (N, D), (V, D), (V,)
        total = torch.zeros((), dtype=hidden.dtype, device=hidden.device)  # ()
        wants = ctx.needs_input_grad[:3]
        grad_x = torch.empty_like(hidden) if wants[0] else None  # (N, D)
        grad_w = torch.zeros_like(weight) if wants[1] else None  # (V, D)
        grad_b = torch.zeros_like(bias) if wants[2] else None  # (V,)
        with torch.autocast(device, enabled=False):
            for start in range(0, len(x), rows_per_chunk):
                rows = slice(start, start + rows_per_chunk)
                target = targets[rows].unsqueeze(1)  # (n, 1)
                keep = target != ignore_index  # (n, 1)
                target = target.masked_fill(~keep, 0)  # (n, 1)
                logits = F.linear(x[rows], w, b).to(hidden.dtype)  # (n, V)
                log_sum = logits.logsumexp(dim=1, keepdim=True)  # (n, 1)
                total += ((log_sum - logits.gather(1, target)) * keep).sum()
                if not any(wants):
                    continue
                grad = logits.sub_(log_sum).exp_()  # (n, V), the softmax
                grad.scatter_add_(1, target, torch.full_like(log_sum, -1.0)).mul_(keep)
                if wants[2]:
                    grad_b += grad.sum(dim=0)
                grad = grad.to(low)  # (n, V)
                if wants[0]:
                    grad_x[rows] = grad @ w  # (n, D)
                if wants[1]:
                    grad_w += grad.T @ x[rows]  # (V, D)
        ctx.save_for_backward(grad_x, grad_w, grad_b)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_total):
        scaled = [None if g is None else g * grad_total for g in ctx.saved_tensors]
        return *scaled, None, None, None


def output_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, ignore_index: int = 0, rows_per_chunk: int = 256
) -> Tensor:
    """Sum, in nats, of the cross-entropy of a linear output layer; targets equal to `ignore_index` count nothing.

    hidden (…, D), weight (V, D), bias (V,), targets (…) of ids -> a scalar. The same as
    `F.cross_entropy(hidden @ weight.T + bias, targets, reduction="sum")`, but only rows_per_chunk × V logits exist at a
    time, in the forward and in the backward pass. Raises ValueError where the shapes disagree.
    """
    if hidden.shape[:-1] != targets.shape or hidden.shape[-1] != weight.shape[1] or len(weight) != len(bias):
        raise ValueError(
            f"shapes disagree: hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, bias {tuple(bias.shape)}, "
            f"targets {tuple(targets.shape)}; expected (…, D), (V, D), (V,), (…)"
        )
    return _OutputLoss.apply(hidden.flatten(0, -2), weight, bias, targets.flatten(), ignore_index, rows_per_chunk)
