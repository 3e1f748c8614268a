"""Run the GPU's part of the benchmark on the processor, in small: measure_gpu_part.py FOLDER.

Of third parties it may import torch, numpy, safetensors, transformers, and what these need. Each
file goes to FOLDER; what was found, to stdout as JSON.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "report"))
NOT_THERE = (
    "IPython PIL datasets fasttext hypothesis ipykernel ipywidgets jupytext matplotlib nbclient "
    "nbformat nbval pandas playwright pypandoc pytest sacrebleu seaborn typst voila"
).split()
sys.modules |= dict.fromkeys(NOT_THERE)  # to import None is an error

if __name__ == "__main__":  # the two processes of its last part import this file too
    import torch

    import on_gpu
    from helpers.model import ModelConfig

    def keep(name, numbers):
        Path(sys.argv[1], f"{name}.json").write_text(json.dumps(numbers, allow_nan=False))

    torch.compile = lambda function: function  # it would take a minute
    tiny = ModelConfig(40, 12, d_model=16, num_layers=2, num_heads=2, d_ff=32, context_length=12)
    how = {"sizes": {"tiny": (tiny, 2)}, "checkpointed": tiny, "sides": (16, 32), "turns": 2}
    on_gpu.measure(0.0, keep, "cpu", **how)
