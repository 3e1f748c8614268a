"""What a run stands on: the device, the precision, memory, other processes, modes of a model."""

import ctypes
import platform
import timeit
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.support.checks import require


def pick_device(device: str = "auto") -> str:
    """The named device, or for "auto" the first of cuda, mps and cpu that this machine has.

    Raises ValueError if the named device is not here.
    """
    gpus = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    there = [*(kind for kind, is_available in gpus.items() if is_available()), "cpu"]
    if device == "auto":
        return there[0]
    require(
        str(device).partition(":")[0] in there,
        f"device={device!r} is not on this machine: choose 'auto', or one of {there}",
    )
    return device


def pick_precision(device: str) -> str:
    """bf16 if the hardware multiplies it at least 1.3 times as fast as fp32, otherwise fp32.

    A CPU is probed by a timed product: emulated bf16 can be 50 times slower than fp32, native
    bf16 three times faster.
    """
    kind = torch.device(device).type
    if kind != "cpu":
        return (
            "bf16"
            if (kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
            else "fp32"
        )
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(256, 512, dtype=dtype)  # (256, 512)
        seconds.append(min(timeit.repeat(partial(torch.matmul, a, a.T), number=1, repeat=5)))
    return "bf16" if seconds[0] > 1.3 * seconds[1] else "fp32"


def autocast(device: str, precision: str = "auto") -> AbstractContextManager:
    """PyTorch's autocast to bfloat16 if the precision is "bf16"; nothing changes for "fp32".

    "auto" is whichever `pick_precision` finds faster.
    """
    fast = (pick_precision(device) if precision == "auto" else precision) == "bf16"
    return torch.autocast(device, torch.bfloat16) if fast else nullcontext()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout off; afterwards, even after an error, the model's mode is what it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def packed_weights(model: nn.Module, rows: int | None = None) -> Iterator[None]:
    """Let each `nn.Linear` on a processor multiply by a copy of its weights that oneDNN packed.

    A decoding step multiplies few rows by every weight, so most of its time goes into reading
    them. PyTorch repacks float32 weights on every call; packing them once avoids that. The
    products are the same up to rounding. Nothing changes on other devices, in float64, under
    autocast, or if PyTorch has no oneDNN. Not for training: the copy has no gradient and does not
    follow the weights.

    rows: pack only the layers whose product with so many rows is not slower then (`packing_pays`,
    tried once for each size); None: all.
    """
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, nn.Linear)
        and _can_be_packed(layer.weight)
        and (rows is None or packing_pays(rows, layer.weight.dtype, *layer.weight.shape))
    ]
    for layer in layers:
        layer.forward = _packed(layer.weight, layer.bias)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # that of the class again


@cache
def packing_pays(rows: int, dtype: torch.dtype, outputs: int, inputs: int) -> bool:
    """Whether so many rows are multiplied on this processor by packed weights (outputs, inputs).

    They are unless that is clearly slower: a close call would differ from run to run, and with it
    the last digits.
    """
    x, weight = (torch.ones(n, inputs, dtype=dtype, device="cpu") for n in (rows, outputs))
    plain, packed = (
        min(timeit.repeat(partial(product, x), number=3, repeat=5))
        for product in (partial(F.linear, weight=weight), _packed(weight, None))
    )
    return packed < 1.15 * plain


def _packed(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    return partial(
        torch.ops.mkldnn._linear_pointwise,  # (…, in) -> (…, out)
        W=torch.ops.mkldnn._reorder_linear_weight(weight.detach()),
        B=bias,
        attr="none",
        scalars=[],
        algorithm="",
    )


def _can_be_packed(weight: Tensor) -> bool:
    # Under autocast the layer multiplies a bfloat16 copy of its weights.
    return (
        weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and (
            weight.dtype == torch.float32
            or (weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )
    )


def keep_freed_memory() -> None:
    """Let this process keep the large blocks that it frees, for the next step.

    By default glibc returns them to the system, which must then clear their pages for every step
    of a training run. The process stays as large as it was at its peak. Without glibc nothing
    changes. See `man 3 mallopt`.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD of <malloc.h>, in bytes
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def rank_and_processes() -> tuple[int, int]:
    """This process's number among those that train together, and how many they are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_processes(device: torch.device, *numbers: float) -> list[float]:
    """Each number summed over all processes, in float64."""
    place = device if device.type == "cuda" else "cpu"
    sums = torch.tensor(numbers, dtype=torch.float64, device=place)  # (numbers,)
    if rank_and_processes()[1] > 1:
        dist.all_reduce(sums)
    return sums.tolist()
