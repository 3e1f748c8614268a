"""Save a figure and numbers into $FIGURES_DIR/bundled again and again: 0 or 1, TIMES."""

import sys

import numpy as np

from helpers.attention_plots import heatmap
from helpers.notebook import FigureFolder

mark, times = map(int, sys.argv[1:])
figures = FigureFolder("bundled")
for i in range(times):
    figures.save_numbers("numbers", {"by": mark, "numbers": list(range(5_000))})
    if i % 10 == 0:
        figure = heatmap(np.eye(3) * mark, list("abc"))
        figures.save_figure(figure, "picture", alt=f"by {mark}")
