"""How fast the code is: beside other code, and below the limit that this machine sets.

    python report/benchmark.py               five minutes on two cores -> tables, and speed.json
    python report/benchmark.py --isa AVX2    with oneDNN limited to AVX2, or to AVX512_CORE:
                                             training and decoding alone -> speed_AVX2.json
    python report/benchmark.py --record      all three -> figures/benchmark/, not build/benchmark/
    python report/benchmark.py --quick       the first in small, to see that it works: no file
    python report/benchmark.py --gpu         six minutes at most -> speed_gpu.json and 06_gpu.json;
                                             needs torch, numpy, safetensors and transformers only

What is compared runs in turns, in one process, after a run to warm up. A ratio is taken turn by
turn: the tables show its median, its quartiles and its minimum. The limit is the time of the same
work's matrix products alone, each measured by itself: nothing else would have to be computed.
Notebooks 06 and 07 and the README show the recorded numbers. Times belong to the machine they were
measured on; ratios carry over better. A machine that was busy is named as such, in the file too.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
LIMITS = ("AVX512_CORE", "AVX2")


def main(arguments: list[str] | None = None) -> None:
    """Start the runs that the options ask for, each in a process of its own."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--record", action="store_true", help="renew what the repository carries")
    how.add_argument("--quick", action="store_true", help="one turn of small cases; writes nothing")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--isa", choices=LIMITS, help="limit oneDNN to these instructions")
    what.add_argument("--gpu", action="store_true", help="measure the GPU, not the processor")
    # Of a run that another one started: the load average before the first.
    parser.add_argument("--load", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0] if options.load is None else options.load
    if options.gpu and options.quick:
        parser.error("--gpu has no --quick: it takes six minutes at most")
    # Each imports what it needs, and a machine with a GPU has not all that the other needs.
    if options.gpu:
        import on_gpu

        on_gpu.main(load, options.record)
    elif options.load is None:
        for limit in [options.isa] if options.isa or not options.record else [*LIMITS, None]:
            start(arguments, load, limit)
    else:
        import on_processor

        on_processor.main(load, options.record, options.quick, options.isa)


def start(arguments: list[str], load: float, limit: str | None) -> None:
    """Run this again in a process of its own: oneDNN reads its limit when PyTorch loads it."""
    environment = os.environ | ({"ONEDNN_MAX_CPU_ISA": limit} if limit else {})
    command = [sys.executable, __file__, *arguments, "--load", str(load)]
    command += ["--isa", limit] if limit else []
    done = subprocess.run(command, env=environment)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
