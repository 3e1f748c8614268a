"""Draw every plot, and figures that notebooks change by hand. Print what the files are."""

import hashlib
import io

import matplotlib
from test_notebook import CURVES, EVERY_PLOT

from helpers import plots


def by_hand():
    figure, (left, right) = plots.subplots(1, 2)
    left.plot([1, 2, 3], [1e-3, 2, 3e4], label="a line")
    left.fill_between([1, 2], [1, 1], [2, 3], alpha=0.2)
    left.set(xscale="log", yscale="log", title="logarithmic")
    right.bar([1, 2], [-1, 2], hatch="//")
    right.set_xticks([1, 2], ["one", "two"])
    figure.legend(loc="outside lower right")
    return figure


def changed_later():
    figure = plots.compare_curves(CURVES)
    figure.axes[0].set_xscale("log", base=2)
    figure.axes[0].set_xticks([1, 2], [1, 2])
    return figure


before = dict(matplotlib.rcParams.copy())
for draw in (*EVERY_PLOT.values(), by_hand, changed_later):
    figure, svg, png = draw(), io.BytesIO(), io.BytesIO()
    plots.render(figure, svg, format="svg", metadata={"Date": None})
    plots.render(figure, png, format="png", dpi=72)
    print(*(hashlib.sha256(file.getvalue()).hexdigest() for file in (svg, png)))
assert dict(matplotlib.rcParams.copy()) == before, "the session's settings are others now"
