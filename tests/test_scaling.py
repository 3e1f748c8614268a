"""Size against data: what counts as size, the run that stops early, and the fit that guesses."""

import math

import numpy as np
import pytest
import torch
from support import TOKENIZER, made_stories, report_script

from helpers.loss import mean_loss
from helpers.training import encode_stories

scaling = report_script("scaling")
IDS = encode_stories(TOKENIZER, made_stories(170).train, 12)  # (160, T)


def test_a_size_leaves_out_the_tables_of_the_vocabulary():
    small, large = (scaling.size_of(scaling.new_model(16, words, 0)) for words in (40, 4_000))
    # A block: four matrices of attention, two of the feed-forward layer, their biases, two norms.
    block = 4 * 16**2 + 2 * 4 * 16**2 + (3 * 16 + 16) + (4 * 16 + 16) + 4 * 16
    own = large - 3 * block - 2 * 16  # what is left: a projection, if there is one
    assert small == large
    assert own in (0, 16**2 + 16)


def test_a_run_keeps_its_best_weights_and_measures_them_on_other_stories(monkeypatch):
    monkeypatch.setattr(scaling, "LONGEST", 40)
    other = IDS[40:80].flip(1)  # told backwards
    data = {
        "vocabulary": 40,
        "train": IDS[:60],
        "stop": IDS[60:100],
        "measure": other,
        "floor": 0.5,
    }
    found = scaling.fit(16, 60, 1e-2, 0, data)
    assert 0 < found["stopped"] <= 40
    assert found["steps"] <= math.ceil(found["stopped"] * 5 / 3)
    assert found["stop"] <= found["constant"]
    torch.manual_seed(0)
    untrained = mean_loss(scaling.new_model(16, 40, 0), IDS[40:80], precision="fp32")
    assert found["stop"] < untrained - 0.5
    assert found["loss"] > found["stop"] + 0.5
    assert found == scaling.fit(16, 60, 1e-2, 0, data)


@pytest.mark.parametrize("floor", [0.0, 0.9])
def test_the_free_fit_finds_a_law_that_made_the_losses(floor):
    sizes, stories = map(np.ravel, np.meshgrid([1e3, 1e4, 1e5, 1e6], [300, 3e3, 3e4]))
    found = scaling.free_fit(sizes, stories, floor + 40 * sizes**-0.5 + 9 * stories**-0.34)
    assert found["floor"] == pytest.approx(floor, abs=1e-3)
    assert (found["alpha"], found["beta"]) == pytest.approx((0.5, 0.34))
    assert found["relative error"] < 1e-6


def test_points_are_left_out_at_the_ends():
    points = [{"width": w, "stories": n} for w in scaling.WIDTHS for n in scaling.AMOUNTS]
    assert [len(some) for some in scaling.chosen(points).values()] == [25, 20, 20, 16]
