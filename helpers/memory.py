"""Memory tricks, written by hand, and the meter that shows what they save.

checkpoint() forgets the inside of a segment and computes it again in the backward pass;
output_loss() takes the output layer and its loss a few rows at a time; measure_peak_memory() and
memory_timeline() count bytes; keep_freed_memory() saves the system's work between steps.
"""

import ctypes
import platform
import weakref
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@torch.compiler.disable  # the two passes must save the same tensors: compiled, they need not
def checkpoint(function: Callable, *args):
    """function(*args), keeping only `args` for the backward pass, and nothing of what was computed
    from them.

    The backward pass calls the function again, with the same autocast and the same random state
    (the CPU's, and that of the first argument which is elsewhere), and goes on from there: one more
    forward pass of time, for the inside of one segment in memory instead of that of all. Chen et
    al. 2016, "Training Deep Nets with Sublinear Memory Cost", section 3. `function` returns a
    tensor or a tuple of tensors, which go into one backward pass and are not changed in place; it
    must do the same both times. Checkpoints may be nested. Where gradients are off
    (`torch.no_grad`), this is a plain call.

    Raises TypeError where something else is returned, and RuntimeError where nothing in the segment
    needs a gradient, or where the function changes an argument in place. The backward pass raises
    RuntimeError where a tensor argument, or a parameter that an operation keeps (a weight, not a
    bias), was changed in place meanwhile, where the function saved other tensors the second time or
    changed one in place, and for second derivatives (create_graph=True). Other changes, and those
    of tensors inside lists, go unnoticed: make none.
    """
    if not torch.is_grad_enabled():
        return function(*args)
    segment = _Segment(function, args)
    with saved_tensors_hooks(segment.forget, segment.recall):
        result = function(*args)
    outputs = result if isinstance(result, tuple) else (result,)
    if not all(isinstance(output, Tensor) for output in outputs):
        raise TypeError(
            f"checkpoint: the function returned {type(result).__name__}, not a tensor or a tuple "
            "of tensors"
        )
    if not any(output.requires_grad for output in outputs):
        raise RuntimeError(
            "checkpoint: no argument and no parameter needs a gradient, so there is nothing to "
            "compute again; call the function itself, or let one of them require a gradient"
        )
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    if [tensor._version for tensor in tensors] != segment.versions:
        raise RuntimeError(
            "checkpoint: the function changed an argument in place, so it cannot be called again "
            "with it"
        )
    outputs = _Recompute.apply(segment, tensors, *outputs)
    return outputs if isinstance(result, tuple) else outputs[0]


class _Recompute(torch.autograd.Function):
    """Stands at the end of a segment: forward it changes nothing, backward it computes the segment
    again.

    The backward pass meets it before everything inside the segment. What it saves is the segment's
    input.
    """

    @staticmethod
    def forward(ctx, segment, inputs, *outputs):
        ctx.segment = segment
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(output for output in outputs if not output.requires_grad))
        return outputs

    @staticmethod
    def backward(ctx, *grads):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "checkpoint: no second derivatives (create_graph=True); call the function itself"
            )
        try:
            inputs = ctx.saved_tensors
        except RuntimeError as error:
            if "inplace" not in str(error):
                raise
            raise RuntimeError(
                "checkpoint: an argument was changed in place before the backward pass"
            ) from error
        ctx.segment.recompute(inputs)
        return None, None, *grads


class _Segment:
    """One call of `checkpoint`: how to repeat it, and what its graph will ask for.

    Whatever an operation wants to save for its backward pass goes through `forget`, and comes back
    through `recall`.
    """

    def __init__(self, function: Callable, args: tuple):
        self.function = function
        # Tensors are left to autograd, which notices changes in place: here only whether each needs
        # a gradient.
        self.args = [
            (True, arg.requires_grad) if isinstance(arg, Tensor) else (False, arg) for arg in args
        ]
        self.versions = [
            arg._version for arg in args if isinstance(arg, Tensor)
        ]  # the number of changes in place
        devices = (
            arg.device
            for arg in args
            if isinstance(arg, Tensor) and arg.device.type not in ("cpu", "meta")
        )
        self.device = next(devices, torch.device("cpu"))
        self.random_state = torch.get_rng_state()
        if self.device.type != "cpu":
            self.device_random_state = torch.get_device_module(self.device).get_rng_state(
                self.device
            )
        self.autocast = (
            torch.is_autocast_enabled(self.device.type),
            torch.get_autocast_dtype(self.device.type),
        )
        # Weak: a step of the graph that is done lets go of its tensors.
        self.asked: list[weakref.ref[_Placeholder]] = []

    def forget(self, tensor: Tensor) -> "_Placeholder":
        placeholder = _Placeholder(tensor)
        self.asked.append(weakref.ref(placeholder))
        return placeholder

    def recall(self, placeholder: "_Placeholder") -> Tensor:
        if placeholder.tensor is None:
            raise RuntimeError(
                "checkpoint: the backward pass entered a segment by a way around its result"
            )
        if placeholder.describe(placeholder.tensor) != placeholder.description:
            raise RuntimeError(
                "checkpoint: the function changed in place a tensor that its backward pass needs"
            )
        return placeholder.tensor

    def recompute(self, inputs: tuple[Tensor, ...]) -> None:
        """Run the function again, until every placeholder has its tensor."""
        tensors = iter(inputs)
        args = [
            next(tensors).detach().requires_grad_(what) if is_tensor else what
            for is_tensor, what in self.args
        ]
        places, left = iter(self.asked), len(self.asked)
        if left == 0:
            return

        def fill(tensor: Tensor) -> None:
            nonlocal left
            placeholder = next(places)()
            if placeholder is not None:
                placeholder.fill(tensor)
            left -= 1
            if left == 0:
                raise _NothingLeft

        enabled, dtype = self.autocast
        on_device = self.device.type != "cpu"
        with (
            torch.random.fork_rng(
                [self.device] if on_device else [],
                device_type=self.device.type if on_device else "cuda",
            ),
            torch.autocast(self.device.type, dtype, enabled),
            torch.enable_grad(),
            saved_tensors_hooks(fill, lambda _: None),
        ):
            torch.set_rng_state(self.random_state)
            if on_device:
                torch.get_device_module(self.device).set_rng_state(
                    self.device_random_state, self.device
                )
            try:
                self.function(*args)
            except _NothingLeft:
                return
        if left:
            raise RuntimeError(
                f"checkpoint: the second pass saved {left} tensors fewer than the first; {_SAME}"
            )


class _NothingLeft(Exception):
    """The backward pass has all it needs: the rest of the second pass would be for nothing."""


class _Placeholder:
    """What the graph holds in place of a tensor."""

    def __init__(self, tensor: Tensor):
        self.description = self.describe(tensor)
        self.tensor: Tensor | None = None

    @staticmethod
    def describe(tensor: Tensor) -> tuple:
        return (
            tuple(tensor.shape),
            tensor.dtype,
            tensor._version,
        )  # the version counts changes in place

    def fill(self, tensor: Tensor) -> None:
        if self.describe(tensor) != self.description:
            raise RuntimeError(
                f"checkpoint: the second pass saved {self.describe(tensor)}, the first "
                f"{self.description} (shape, type, number of changes in place); {_SAME}"
            )
        self.tensor = tensor


_SAME = "the function must do the same both times, with parameters that did not change in between"


class _OutputLoss(torch.autograd.Function):
    """Sum of cross-entropies of `hidden @ weight.T + bias`, without ever holding all its (N, V)
    logits.

    The loss is one number, so its gradient is known up to a factor as soon as a chunk of logits is:
    softmax minus one-hot. The forward pass therefore computes the gradients too, and the backward
    pass only scales them.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, ignore_index, rows_per_chunk, differentiate):
        device = hidden.device.type
        low = (
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        )
        wide = torch.promote_types(
            hidden.dtype, torch.float32
        )  # what is added up, is added in at least float32
        kept = (targets != ignore_index).nonzero().squeeze(1)  # (n,), the rows that count
        x, w, b = hidden[kept].to(low), weight.to(low), bias.to(low)  # (n, D), (V, D), (V,)
        targets = targets[kept, None]  # (n, 1)
        total = torch.zeros((), dtype=wide, device=hidden.device)  # ()
        wants = ctx.needs_input_grad[:3] if differentiate else (False, False, False)
        grad_x = torch.zeros_like(hidden) if wants[0] else None  # (N, D)
        grad_w = torch.zeros_like(weight, dtype=wide) if wants[1] else None  # (V, D)
        grad_b = torch.zeros_like(bias, dtype=wide) if wants[2] else None  # (V,)
        with torch.autocast(device, enabled=False):
            for rows, chunk, target in zip(
                *(t.split(rows_per_chunk) for t in (kept, x, targets)), strict=True
            ):
                grad = None  # lets go of the last chunk's before this one's is made
                grad = torch.log_softmax(
                    F.linear(chunk, w, b), dim=1, dtype=wide
                )  # (c, V), log-probabilities
                total -= grad.gather(1, target).sum()
                if not any(wants):
                    continue
                grad.exp_()  # (c, V), the softmax
                grad.scatter_add_(
                    1, target, torch.full_like(target, -1, dtype=wide)
                )  # (c, V), less the one-hot
                if wants[2]:
                    grad_b += grad.sum(dim=0)
                grad = grad.to(low)  # (c, V)
                if wants[0]:
                    grad_x[rows] = (grad @ w).to(grad_x.dtype)  # (c, D)
                if wants[1]:
                    grad_w += grad.T @ chunk  # (V, D)
        grad_w = None if grad_w is None else grad_w.to(weight.dtype)  # (V, D)
        grad_b = None if grad_b is None else grad_b.to(bias.dtype)  # (V,)
        ctx.save_for_backward(grad_x, grad_w, grad_b)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_total):
        scaled = [None if g is None else g * grad_total.to(g.dtype) for g in ctx.saved_tensors]
        return *scaled, None, None, None, None


def output_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    ignore_index: int = 0,
    rows_per_chunk: int = 512,
) -> Tensor:
    """Sum, in nats, of the cross-entropy of a linear output layer; targets equal to `ignore_index`
    count nothing.

    hidden (…, D), weight (V, D), bias (V,), targets (…) of ids -> a scalar. The same as
    `F.cross_entropy(hidden @ weight.T + bias, targets, reduction="sum")`, but only rows_per_chunk ×
    V logits exist at a time, in the forward and in the backward pass. Sums are in float32 at least.
    Raises ValueError where the shapes disagree.
    """
    if (
        hidden.shape[:-1] != targets.shape
        or hidden.shape[-1] != weight.shape[1]
        or len(weight) != len(bias)
    ):
        raise ValueError(
            f"shapes disagree: hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, bias "
            f"{tuple(bias.shape)}, targets {tuple(targets.shape)}; expected (…, D), (V, D), (V,), "
            "(…)"
        )
    differentiate = torch.is_grad_enabled()
    return _OutputLoss.apply(
        hidden.flatten(0, -2),
        weight,
        bias,
        targets.flatten(),
        ignore_index,
        rows_per_chunk,
        differentiate,
    )


def keep_freed_memory() -> None:
    """Let this process keep the large blocks that it frees, for the next step. Does nothing where
    there is no glibc.

    By default glibc gives them back, and the system must clear their pages anew for every step of a
    training run. The process then stays as large as it was at its peak. See `man 3 mallopt`.
    """
    if platform.libc_ver()[0] == "glibc":
        mmap_threshold, trim_threshold = (
            -3,
            -1,
        )  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of <malloc.h>
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 1 << 30)  # bytes
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def measure_peak_memory(
    function: Callable[[], object], device: str | torch.device | None = None
) -> int:
    """The most bytes that function() holds at once, beyond those held before; what it makes, it is
    free to keep.

    device: where the function works; None: on a CUDA GPU where there is one. There it is what
    PyTorch's allocator says (`torch.cuda.max_memory_allocated`), the memory that an operation uses
    for itself included. Elsewhere it is the peak of `memory_timeline`, in which only tensors count.
    """
    if not (torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"):
        return max(memory_timeline(function), default=0)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def memory_timeline(function: Callable[[], object]) -> list[int]:
    """Bytes of the tensors made by function() that are still referred to, after each operation of
    PyTorch that it runs.
    """
    meter = _LiveBytes()
    with meter:
        function()
    return meter.timeline


class _LiveBytes(TorchDispatchMode):
    """Sees every operation, of backward passes too: counts each new storage, until nothing refers
    to it any more.
    """

    def __init__(self):
        super().__init__()
        self.timeline: list[int] = []
        self.live = 0
        self.storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given = {_storage(t)._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        if operation is torch.ops.aten.lift_fresh.default:
            given = set()  # torch.tensor(...): made before the first operation
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if (
                isinstance(tensor, Tensor) and _storage(tensor)._cdata not in given
            ):  # else a view, or changed in place
                self.count(_storage(tensor))
        self.timeline.append(self.live)
        return result

    def count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.storages:
            return

        def gone(_):
            self.live -= size
            del self.storages[key]

        self.storages[key] = weakref.ref(storage, gone)
        self.live += size


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()
