"""Measured times: runs in turns, their spread, the machine they belong to, and the file of it all.

Nothing here needs more than PyTorch and NumPy, so that it works on a bare machine with a GPU too.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from helpers.support.files import make_folder, user_path, write_whole

ROOT = Path(__file__).resolve().parents[1]
ISA_LIMIT = "ONEDNN_MAX_CPU_ISA"  # oneDNN reads this variable when PyTorch loads it
INSTRUCTION_SETS = "avx2 avx512_f avx512_bf16 amx_bf16 neon bf16 sve".split()
QUIET = 0.25  # of the cores busy before the start
STEADY = 0.15  # of the median, between the quartiles of a rate
TIMES = "{median:.2f} ({q1:.2f} to {q3:.2f}, lowest {low:.2f})"


def in_turns(
    runs: Mapping[str, Callable[[], object]],
    turns: int,
    before: Callable[[str], None] | None = None,
    longest: float = 60.0,
) -> dict[str, list[float]]:
    """Seconds of each run in each turn. One turn before the first warms up.

    Args:
        runs: what to time, by name.
        turns: how many.
        before: called with a run's name before each run, which is then repeated, and timed the
            second time.
        longest: seconds after which no further turn begins; three are made in any case.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    for turn in range(turns + 1):
        if turn > 3 and time.perf_counter() - started > longest:
            break
        for name, run in runs.items():
            if before:
                before(name)
                run()
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def alone(function: Callable[[], object], turns: int) -> float:
    """Median seconds of one call."""
    return statistics.median(in_turns({"": function}, turns, longest=10.0)[""])


def spread(values: list[float]) -> dict[str, float]:
    """The minimum, the quartiles and the maximum, and of how many turns."""
    found = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
    named = dict(zip(("low", "q1", "median", "q3", "high"), found, strict=True))
    return named | {"turns": len(values)}


def rate(work: float, seconds: list[float]) -> dict[str, float]:
    """Work per second over the turns."""
    return spread([work / one for one in seconds])


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """How many times as fast ours is, turn by turn."""
    return spread([b / a for a, b in zip(ours, theirs, strict=True)])


def machine(load: float) -> dict:
    """What the times belong to; `caption` says it in words.

    load: the load average before the start.
    """
    # An older PyTorch does not tell.
    told = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    limit = os.environ.get(ISA_LIMIT)
    found = {
        "processor": told.get("cpu_name") or platform.processor() or platform.machine(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if told.get(name)],
        "pytorch_uses": torch.backends.cpu.get_cpu_capability(),
        "onednn_limit": limit,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": str(torch.__version__),
        "system": platform.system(),
        "load_before": load,
    }
    sets = ", ".join(found["instruction_sets"]) or "instruction sets unknown"
    limited = f"oneDNN limited to {limit}" if limit else "oneDNN without a limit"
    threads = f"{found['threads']} thread{'s' * (found['threads'] > 1)}"
    found["caption"] = (
        f"{found['processor']} ({sets}; PyTorch's kernels: {found['pytorch_uses']}; {limited}), "
        f"{threads}, PyTorch {found['torch']}, {found['system']}"
    )
    found["busy"] = []
    if load > QUIET * found["cores"]:
        found["busy"].append(
            f"The load average before the start was {load:.1f} on {found['cores']} cores: other "
            "programs were running."
        )
    return found


def unsteady(rates: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A sentence if the turns of some runs lie far apart, otherwise nothing.

    rates: for each run what `rate` gives.
    """
    apart = {name: (row["q3"] - row["q1"]) / row["median"] for name, row in rates.items()}
    wide = [name for name, share in apart.items() if share > STEADY]
    if not wide:
        return []
    worst = max(wide, key=apart.get)
    return [
        f"The quartiles of {len(wide)} of {len(rates)} rates are more than {STEADY:.0%} of the "
        f"median apart ({worst}: {apart[worst]:.0%}): the machine was not steady."
    ]


def save(name: str, numbers: Mapping, record: bool) -> Path:
    """Write `<name>.json`: keys sorted, floats to six digits. Returns its path.

    record: into benchmark/ of $FIGURES_DIR or figures/, as `FigureFolder("benchmark")` does;
    otherwise into build/benchmark/.
    """
    figures = user_path(os.environ.get("FIGURES_DIR") or ROOT / "figures")
    path = (figures if record else ROOT / "build") / "benchmark" / f"{name}.json"
    text = json.dumps(numbers, allow_nan=False)
    rounded = json.loads(text, parse_float=lambda digits: float(f"{float(digits):.6g}"))
    make_folder(path.parent)
    write_whole(path, json.dumps(rounded, sort_keys=True, indent=1, ensure_ascii=False) + "\n")
    return path
