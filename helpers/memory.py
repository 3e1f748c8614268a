"""Gradient checkpointing written by hand, and the meter of peak memory that shows what it saves."""

import weakref
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers.support.checks import require


# The two passes must save the same tensors: compiled, they need not. Unlike
# `torch.compiler.disable`, this loads the compiler when it is called, not with the module.
@torch._disable_dynamo
def checkpoint(function: Callable, *args):
    """function(*args), of which only `args` are kept for the backward pass.

    The backward pass calls the function again, with the same autocast and the same random state
    (the CPU's, and that of the first argument on another device), and continues from there. This
    costs one more forward pass, and keeps the inside of one segment in memory instead of all.
    Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", section 3.

    Checkpoints may be nested. If gradients are off (`torch.no_grad`), or nothing inside needs one,
    this is a plain call.

    Args:
        function: must do the same both times, and change none of its results in place.
        args: tensors and others. Changes to tensors inside lists go unnoticed: make none.

    Returns:
        What the function returns: a tensor or a tuple of tensors, for one backward pass.

    Raises:
        TypeError: if the function returns something else.
        RuntimeError: if the function changes an argument in place. In the backward pass: if an
            argument, or a parameter that an operation keeps (a weight, not a bias), was changed in
            place meanwhile; if the second call saves other tensors, or changes one in place; and
            for second derivatives (create_graph=True).
    """
    if not torch.is_grad_enabled():
        return function(*args)
    segment = Segment(function, args)
    with saved_tensors_hooks(segment.forget, segment.recall):
        result = function(*args)
    outputs = result if isinstance(result, tuple) else (result,)
    segment.check(outputs, args)
    outputs = Recompute.apply(segment, tensors_of(args), *outputs)
    return outputs if isinstance(result, tuple) else outputs[0]


class Recompute(torch.autograd.Function):
    """The end of a segment: forward it changes nothing, backward it computes the segment again.

    The backward pass meets it before everything inside the segment. It saves the segment's input.
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
            raise RuntimeError("checkpoint: no second derivatives; call the function itself")
        ctx.segment.recompute(ctx.saved_tensors)
        return None, None, *grads


class Segment:
    """One call of `checkpoint`: how to repeat it, and what its graph will ask for.

    Whatever an operation wants to save for its backward pass goes through `forget`, and comes back
    through `recall`.
    """

    def __init__(self, function: Callable, args: tuple):
        self.function = function
        # Autograd keeps the tensors; here stands only whether each of them needs a gradient.
        self.args = [
            (a, None) if not isinstance(a, Tensor) else (None, a.requires_grad) for a in args
        ]
        self.versions = [tensor._version for tensor in tensors_of(args)]  # changes in place
        self.device = next(
            (t.device for t in tensors_of(args) if t.device.type not in ("cpu", "meta")),
            torch.device("cpu"),
        )
        kind = self.device.type
        self.random_state = torch.get_rng_state()
        if kind != "cpu":
            self.device_state = torch.get_device_module(kind).get_rng_state(self.device)
        self.autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        # Weak: a step of the graph that is done lets go of its tensors.
        self.asked: list[weakref.ref[Placeholder]] = []

    def forget(self, tensor: Tensor) -> "Placeholder":
        placeholder = Placeholder(tensor)
        self.asked.append(weakref.ref(placeholder))
        return placeholder

    def recall(self, placeholder: "Placeholder") -> Tensor:
        require(
            placeholder.tensor is not None,
            "checkpoint: the backward pass entered a segment from its side",
            RuntimeError,
        )
        placeholder.check(placeholder.tensor)  # the function may have changed it in place
        return placeholder.tensor

    def recompute(self, inputs: tuple[Tensor, ...]) -> None:
        """Run the function again, until every placeholder has its tensor."""
        tensors = iter(inputs)
        args = [
            arg if needs is None else next(tensors).detach().requires_grad_(needs)
            for arg, needs in self.args
        ]
        places, left = iter(self.asked), len(self.asked)

        def fill(tensor: Tensor) -> None:
            nonlocal left
            if (placeholder := next(places)()) is not None:
                placeholder.check(tensor)
                placeholder.tensor = tensor
            left -= 1
            if left == 0:
                raise NothingLeft

        kind, (enabled, dtype) = self.device.type, self.autocast
        others = [] if kind == "cpu" else [self.device]
        with (
            torch.random.fork_rng(others, device_type=kind if others else "cuda"),
            torch.autocast(kind, dtype, enabled),
            torch.enable_grad(),
            saved_tensors_hooks(fill, lambda _: None),
            suppress(NothingLeft),
        ):
            torch.set_rng_state(self.random_state)
            if others:
                torch.get_device_module(kind).set_rng_state(self.device_state, self.device)
            if left:
                self.function(*args)
        require(
            left == 0,
            f"checkpoint: the second pass saved {left} tensors fewer; {_SAME}",
            RuntimeError,
        )

    def check(self, outputs: tuple, args: tuple) -> None:
        """Refuse a function that cannot be repeated."""
        require(
            len(outputs) == len(tensors_of(outputs)),
            f"checkpoint: the function returned {type(outputs[0]).__name__}, not a tensor or "
            "tensors",
            TypeError,
        )
        require(
            [tensor._version for tensor in tensors_of(args)] == self.versions,
            "checkpoint: the function changed an argument in place",
            RuntimeError,
        )


def tensors_of(args: tuple) -> list[Tensor]:
    return [arg for arg in args if isinstance(arg, Tensor)]


class NothingLeft(Exception):
    """The backward pass has all it needs: the rest of the second pass would be for nothing."""


class Placeholder:
    """What the graph holds in place of a tensor."""

    def __init__(self, tensor: Tensor):
        self.described, self.tensor = self.describe(tensor), None

    @staticmethod
    def describe(tensor: Tensor) -> tuple:
        return tuple(tensor.shape), tensor.dtype, tensor._version  # number of changes in place

    def check(self, tensor: Tensor) -> None:
        """Refuse a tensor that is not the one that was saved."""
        if (found := self.describe(tensor)) != self.described:
            raise RuntimeError(
                f"checkpoint: a tensor is {found}, and was {self.described} when the first pass "
                f"saved it (shape, type, number of changes in place); {_SAME}"
            )


_SAME = "the function must do the same both times, with parameters that did not change in between"


def measure_peak_memory(
    function: Callable[[], object], device: str | torch.device | None = None
) -> int:
    """The most bytes that function() holds at once, beyond those held before.

    On a GPU this is what PyTorch's allocator says (`torch.cuda.max_memory_allocated`), including
    the memory that an operation uses for itself. Elsewhere it is the peak of `memory_timeline`, in
    which only tensors count.

    device: the one that the function works on; None means a CUDA GPU if there is one.
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
    """Bytes of the tensors that function() has made and still needs, after each operation."""
    with LiveBytes() as meter:
        function()
    return meter.timeline


class LiveBytes(TorchDispatchMode):
    """Sees every operation, also of backward passes; counts each new storage while it is used."""

    def __init__(self):
        super().__init__()
        self.timeline, self.live, self.storages = [], 0, {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given = {
            tensor.untyped_storage()._cdata
            for tensor in (t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
        }
        if operation is torch.ops.aten.lift_fresh.default:
            given = set()  # torch.tensor(...): made before the first operation
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            # Others are views, or were changed in place.
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                self.count(tensor.untyped_storage())
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
