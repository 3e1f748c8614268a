"""The output layer and its cross-entropy a few rows at a time, and the loss of a batch of stories.

Shape comments name the sizes: B stories, T tokens, N rows, n rows that count, c rows of a chunk,
D model width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.support.checks import require
from helpers.support.hardware import autocast, evaluating


class OutputLoss(torch.autograd.Function):
    """Sum of cross-entropies of `hidden @ weight.T + bias`, without ever holding all its logits.

    The loss is one number, so its gradient is known up to a factor as soon as a chunk of logits
    is: softmax minus one-hot. The forward pass therefore computes the gradients too, and the
    backward pass only scales them.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, ignore_index, rows_per_chunk, differentiate):
        device = hidden.device.type
        fast = torch.is_autocast_enabled(device)
        low = torch.get_autocast_dtype(device) if fast else hidden.dtype
        wide = torch.promote_types(hidden.dtype, torch.float32)  # sums are in float32 at least
        kept = (targets != ignore_index).nonzero().squeeze(1)  # (n,), the rows that count
        x, w, b = hidden[kept].to(low), weight.to(low), bias.to(low)  # (n, D), (V, D), (V,)
        targets = targets[kept, None]  # (n, 1)
        total = torch.zeros((), dtype=wide, device=hidden.device)  # ()
        grads = []  # of hidden (N, D), weight (V, D) and bias (V,), unless nobody asks for them
        if differentiate:
            grads = [torch.zeros_like(t, dtype=wide) for t in (hidden, weight, bias)]
        chunks = zip(*(t.split(rows_per_chunk) for t in (kept, x, targets)), strict=True)
        with torch.autocast(device, enabled=False):
            for rows, chunk, target in chunks:
                grad = None  # lets go of the last chunk's before this one's is made
                grad = torch.log_softmax(F.linear(chunk, w, b), dim=1, dtype=wide)  # (c, V)
                total -= grad.gather(1, target).sum()
                if grads:
                    grad.exp_()  # (c, V), the softmax
                    minus_one = torch.full_like(target, -1, dtype=wide)  # (c, 1)
                    grad.scatter_add_(1, target, minus_one)  # (c, V), less the one-hot
                    grads[2] += grad.sum(dim=0)
                    grad = grad.to(low)  # (c, V)
                    grads[0][rows] = (grad @ w).to(wide)  # (c, D)
                    grads[1] += grad.T @ chunk  # (V, D)
        inputs = hidden, weight, bias
        ctx.save_for_backward(*(g.to(t.dtype) for g, t in zip(grads, inputs, strict=False)))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_total):
        scaled = [grad * grad_total.to(grad.dtype) for grad in ctx.saved_tensors]
        return *scaled, None, None, None, None


def output_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    ignore_index: int = 0,
    rows_per_chunk: int | None = None,
) -> Tensor:
    """Sum, in nats, of the cross-entropy of a linear output layer.

    The same as `F.cross_entropy(hidden @ weight.T + bias, targets, reduction="sum")`, but only
    rows_per_chunk × V logits exist at a time, in the forward and in the backward pass.

    Args:
        hidden: (…, D), what the layer reads.
        weight, bias: (V, D) and (V,), the layer.
        targets: (…) ids.
        ignore_index: targets of this value count nothing.
        rows_per_chunk: rows whose logits exist at once; None: 512, or on a GPU, which would wait
            for many small products, an eighth of them if that is more.

    Returns:
        A scalar, summed in float32 at least.

    Raises:
        ValueError: if the shapes disagree.
    """
    layer_fits = hidden.shape[-1] == weight.shape[1] and len(weight) == len(bias)
    require(
        layer_fits and hidden.shape[:-1] == targets.shape,
        f"shapes disagree: hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, bias "
        f"{tuple(bias.shape)}, targets {tuple(targets.shape)}; expected (…, D), (V, D), (V,), "
        "(…)",
    )
    rows, flat = hidden.flatten(0, -2), targets.flatten()  # (N, D), (N,)
    rows_per_chunk = rows_per_chunk or max(512, hidden.is_cuda * len(rows) // 8)
    return OutputLoss.apply(
        rows, weight, bias, flat, ignore_index, rows_per_chunk, torch.is_grad_enabled()
    )


def loss_sum(model: nn.Module, ids: Tensor, pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """Teacher forcing on ids (B, T): each token predicts the next.

    The loss of a batch is the ratio of the two results: a mean over real tokens, in which `<pad>`
    has no part.

    Returns:
        The sum of the losses in nats, and the number of targets, two scalars.

    Raises:
        ValueError: if `<pad>` has another id in the model's embedding.
    """
    require(
        pad_id == model.embedding.padding_idx,
        f"pad_id={pad_id}: the model's <pad> is {model.embedding.padding_idx}",
    )
    return model(ids[:, :-1], targets=ids[:, 1:])


def mean_loss(
    model: nn.Module, ids: Tensor, pad_id: int = 0, precision: str = "auto", batch_size: int = 64
) -> float:
    """Mean loss in nats per real token over encoded stories (N, T), without dropout.

    Raises ValueError if there are no tokens.
    """
    total, count = total_loss(model, ids, pad_id, precision, batch_size)
    require(count != 0, "no tokens to measure the loss on: the texts are empty")
    return total / count


@torch.no_grad()
def total_loss(
    model: nn.Module, ids: Tensor, pad_id: int = 0, precision: str = "auto", batch_size: int = 64
) -> tuple[float, int]:
    """The sum of the losses in nats, and the number of targets; otherwise as `mean_loss`."""
    device = model.output.weight.device
    total, count = 0.0, 0
    with evaluating(model), autocast(device.type, precision):
        for rows in ids.split(batch_size):  # (batch_size, T)
            loss, tokens = loss_sum(model, rows.long().to(device), pad_id)  # (), ()
            total, count = total + loss.item(), count + tokens.item()
    return total, count
