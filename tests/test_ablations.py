"""The runs that compare tricks: what each changes, on which stories, and that none is lost."""

import pytest
import torch
import torch.nn.functional as F
from support import TOKENIZER, WORDS, made_model, made_stories, report_script

from helpers import muon
from helpers.training import encode_stories

ablations = report_script("ablations")
IDS = encode_stories(TOKENIZER, made_stories().train, 12)  # (60, T)


@pytest.fixture
def made(monkeypatch):
    """A function that makes a tiny run with a trick."""
    monkeypatch.setattr(ablations, "new_model", lambda *_, **start: made_model(**start))
    monkeypatch.setattr(muon, "ITERATIONS", 5)

    def make(trick):
        return ablations.Run(trick, 0, made_stories(), TOKENIZER, None, "fp32", "cpu")

    return make


def parameters(run):
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])  # (P,)


def trained(make, **trick):
    run = make(ablations.Trick(**{"steps": 4} | trick))
    run.train(IDS)
    return run


def test_a_trick_changes_what_it_names(made):
    plain = parameters(trained(made))
    assert torch.equal(parameters(trained(made)), plain)
    for trick in (
        {"settings": {"muon": 1.0}},
        {"settings": {"learning_rate": 1e-3}},
        {"zero": True},
        {"rates": {"output": 2.0}},
        {"smoothing": 0.1},
        {"average": 0.5},
        {"small_first": True},
    ):
        assert not torch.equal(parameters(trained(made, **trick)), plain), trick
    with_muon = {"settings": {"muon": 1.0}}
    muons = parameters(trained(made, **with_muon))
    for trick in ({"iterations": 2}, {"joint": True}):
        assert not torch.equal(parameters(trained(made, **with_muon, **trick)), muons), trick


def test_rates_multiply_those_of_a_part(made):
    run = made(ablations.Trick({"muon": 2.0}, rates={"blocks": 3.0, "output": 0.5}))
    names = [name for name, _ in run.model.named_parameters()]
    shares = dict(zip(names, (g["share"] for g in run.optimizer.param_groups), strict=True))
    assert shares["blocks.0.attention.output.weight"] == 6.0
    assert shares["blocks.0.attention_norm.gain"] == 3.0
    assert (shares["output.weight"], shares["embedding.weight"]) == (0.5, 1.0)


def test_smaller_batches_first_read_the_same_stories(made):
    whole = made(ablations.Trick(steps=4)).batches(60)
    halves = made(ablations.Trick(steps=4, small_first=True)).batches(60)
    assert [len(rows) for rows in whole] == [32, 28, 32, 28]
    assert [len(rows) for rows in halves] == [16, 16, 16, 12, 32, 28]
    assert torch.equal(torch.cat(whole), torch.cat(halves))


def test_the_average_is_that_of_the_last_weights(made):
    states = []
    run = made(ablations.Trick(steps=4, average=0.5))
    step = run.step
    run.step = lambda *arguments: (step(*arguments), states.append(parameters(run)))
    run.train(IDS)
    assert torch.allclose(parameters(run), (states[2] + states[3]) / 2, atol=1e-7)


def test_smoothed_labels_are_pytorchs(made):
    run = made(ablations.Trick(smoothing=0.2))
    ids = IDS[:8].long()  # (B, T)
    logits, targets = run.model(ids[:, :-1]), ids[:, 1:]  # (B, T-1, V), (B, T-1)
    wrong = F.log_softmax(logits, -1)  # (B, T-1, V)
    right = wrong.gather(-1, targets[..., None])[..., 0]  # (B, T-1)
    expected = -(0.8 * right + 0.2 * wrong.mean(-1))[targets != 0].sum()  # ()
    assert run.trained(ids[:, :-1], ids[:, 1:])[0].item() == pytest.approx(expected.item())


def test_the_development_set_comes_after_the_training_stories(tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "vectors"))
    monkeypatch.setattr(ablations, "STORIES", 6)
    texts = [f"{WORDS[i]} {WORDS[i + 1]} ." for i in range(14)]
    for split, part in (("train", texts[:10]), ("validation", texts[10:])):
        (tmp_path / f"{split}.txt").write_text("<|endoftext|>".join(part))
    found = ablations.prepared.__wrapped__(str(tmp_path))
    assert [len(ids) for ids in found["ids"].values()] == [6, 4, 4]
    assert found["stories"].train == texts[:6]
    assert set(found["tokenizer"].words) == {*WORDS[:7], "."}
