"""What the second edition of a notebook promises its reader; the stored notebooks are read."""

import ast
import base64
import io
import math
import re
import statistics
import subprocess
import sys

import jupytext
import pytest
import torch
import torch.nn.functional as F
from matplotlib.image import imread
from support import ROOT, TOKENIZER, made_model, made_stories

from helpers import model as course
from helpers import training
from helpers.decoding import generate
from helpers.loss import loss_sum
from helpers.model import ModelConfig

NAMES = (
    "01_embeddings",
    "02_attention",
    "03_decoder_block",
    "04_training",
    "05_decoding",
    "06_memory",
)
LESSONS = [ROOT / "notebooks" / f"{name}.ipynb" for name in NAMES]
every_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)

# Claims that every edition keeps, as they stand in the stored outputs.
KEPT = {
    "02_attention": [
        r"✓ two matrices set by hand make a previous-word head",
        r"✓ the wrong view raises no error: its shape is right, its content is not",
        r"✓ the weights of the past move by up to [\d.]+ if masked after the softmax, by 0 if",
        r"✓ the \d+ outputs before the exchanged word do not move, bit for bit; without",
    ],
    "03_decoder_block": [
        r"✓ ln V \+ D/\(D \+ V\) = [\d.]+ nats, measured ≈[\d.]+: within 0.02, and ln V is",
        r"✓ the floor is [\d.]+ nats per token = 8 ln 8 / \d+ tokens",
        r"✓ after 100 steps the loss is ≈[\d.]+: at most 0.01 nats above the floor, not below",
        r"✓ without the mask the loss is ≈[\d.]+, less than a third of the floor",
        r"✓ 12 blocks: for every seed pre-norm ends at least ≈[\d.]+ nats lower",
        r"✓ learned: \d+ tokens × [\d,]+ logits are the sum of the parts, within ≈",
    ],
    "04_training": [
        r"✓ from ≈[\d.]+ to ≈[\d.]+ nats; all 30 losses are those of `train`, to the last digit",
        r"✓ the landmarks are passed in order",
        r"✓ the model ends ≈[\d.]+ nats per token above the floor, less than 0.1",
        r"✓ a new song costs the model ≈[\d.]+ nats per sound, within 0.2 of the floor",
        r"✓ sung again it costs ≈[\d.]+, less than 0.3",
        r"✓ returning names: the costliest head costs ≈[\d.]+ nats",
    ],
    "05_decoding": [
        r"✓ 4 texts by hand are those of `generate`, word for word",
        r"✓ the 3 beams of `generate` are those of the slow search",
        r"✓ a wider beam that loses: two beams end ≈[\d.]+ nats below greedy",
        r"✓ 20 texts, greedy, sampled, 5 beams: the same words with and without the cache",
        r"✓ the broken ones are right at the first word, and then off by at least ≈",
        r"✓ over [\d,]+ words the loss less the true loss is ≈[\d.]+ nats, the divergence ≈",
    ],
    "06_memory": [
        r"✓ the sum of sums is off by ≈\S+ of the largest gradient, less than 1e-12",
        r"✓ the mean of means is off by ≈\d+%, more than a tenth",
        r"✓ those of helpers.memory.checkpoint are the same, bit for bit",
        r"✓ with the random state replayed they are the same, bit for bit",
        r"✓ b is \d+ times a, so the best number of segments is about \d+",
        r"✓ output_loss: the same gradients as with all logits at once, within ≈",
        r"✓ the mean over two shards is the gradient of the whole batch, within ≈",
    ],
}


def cells_of(path, kind="code"):
    return [cell for cell in jupytext.read(path).cells if cell.cell_type == kind]


def printed(path):
    outputs = [output for cell in cells_of(path) for output in cell.outputs]
    return "\n".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs)


# Functions that are the lesson, and are tested below beside the course's own.
WRITTEN_OUT = {"training_loop", "keep_top_k", "keep_top_p", "write", "candidates_of", "slow_beams"}


def written_out(cell):
    """Whether the lesson of this cell is a class or a function, written out; or it is folded."""
    parts = ast.parse(cell.source).body
    return (
        "numbers" in cell.metadata.get("tags", [])
        or any(isinstance(part, ast.ClassDef) for part in parts)
        or any(getattr(part, "name", "") in WRITTEN_OUT for part in parts)
    )


@pytest.mark.parametrize("path", [p for p in LESSONS if p.stem in KEPT], ids=lambda path: path.stem)
def test_what_must_survive_is_claimed(path):
    text = printed(path)
    assert [claim for claim in KEPT[path.stem] if not re.search(claim, text)] == []


@every_lesson
def test_cells_are_short(path):
    cells = [cell for cell in cells_of(path) if not written_out(cell)]
    lengths = [len([line for line in cell.source.splitlines() if line.strip()]) for cell in cells]
    assert max(lengths) <= 25, cells[lengths.index(max(lengths))].source
    assert statistics.median(lengths) <= 6


@every_lesson
def test_no_output_says_only_that_it_is_true(path):
    said = [o.text for cell in cells_of(path) for o in cell.outputs if o.output_type == "stream"]
    lines = "".join(said).splitlines()
    assert lines
    assert [line for line in lines if re.search(r"\b(True|False)$", line)] == []


@every_lesson
def test_prose_reads_without_the_report(path):
    text = "\n".join(cell.source for cell in cells_of(path, "markdown"))
    assert re.findall(r"\[@\w+", text) == []
    assert re.findall(r"the assignment|earlier deliverable|this corpus", text) == []
    for part in ("**You will be able to**", "## Recap", "## What GPT and Llama do differently"):
        assert text.count(part) == 1


@every_lesson
def test_what_a_reader_is_asked_to_predict_is_folded(path):
    cells = jupytext.read(path).cells
    asked = [i for i, cell in enumerate(cells) if "**Predict.**" in cell.source]
    assert 1 <= len(asked) <= 5
    for start in asked:
        assert "\n\n" not in cells[start].source.split("**Predict.**")[1].strip()
        between = cells[start + 1 :]
        told = [c.source.startswith("<details><summary>What happened</summary>") for c in between]
        shown = [cell for cell in between[: told.index(True)] if cell.get("outputs")]
        assert shown
        for cell in shown:
            assert "hide-output" in cell.metadata["tags"], cell.source
            assert cell.metadata["jupyter"]["outputs_hidden"] is True


@every_lesson
def test_few_cells_of_a_lesson_are_exempt(path):
    cells = cells_of(path)
    exempt = [cell for cell in cells if "nbval-ignore-output" in cell.metadata.get("tags", [])]
    assert len(exempt) <= (0.1 if path.stem < "04" else 0.12) * len(cells)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_no_title_is_cut_at_the_edge_of_its_figure(path):
    found = [o.get("data", {}) for cell in cells_of(path) for o in cell.outputs]
    for data in [data for data in found if "image/png" in data]:
        picture = imread(io.BytesIO(base64.b64decode(data["image/png"])))[:60, :, :3]  # (60, W, 3)
        assert picture[:, [0, 1, 2, -3, -2, -1]].min() > 0.8, data["text/plain"]


def test_every_work_is_linked_and_cited():
    bibliography = (ROOT / "report" / "references.bib").read_text(encoding="utf-8")
    addresses = re.findall(r"^  url = \{(.*)\}", bibliography, flags=re.MULTILINE)
    assert len(addresses) == bibliography.count("\n@") == len(set(addresses))
    sources = [p.read_text(encoding="utf-8") for p in (ROOT / "notebooks" / "src").glob("*.py")]
    assert [url for url in addresses if f"]({url})" not in "\n".join(sources)] == []


# --- The set-up cell ------------------------------------------------------------------------------


SETUPS = {"lessons": (".",), "exercises": ("exercises", "exercises/solutions")}
every_setup = pytest.mark.parametrize("name", SETUPS)


def setup_cell(name):
    (cell,) = {
        cell.source: cell
        for folder in SETUPS[name]
        for path in (ROOT / "notebooks" / folder).glob("*.ipynb")
        for cell in cells_of(path)
        if "setup" in cell.metadata.get("tags", [])
    }.values()
    return cell


@every_setup
def test_the_set_up_cell_is_short_and_folded_in_colab(name):
    cell = setup_cell(name)
    assert cell.metadata["cellView"] == "form"
    title, *lines = [line for line in cell.source.splitlines() if line]
    assert title.startswith("# @title ")
    assert len(lines) <= 8


@every_setup
def test_the_set_up_cell_finds_the_course_from_its_folders(name, tmp_path):
    program = tmp_path / "cell.py"
    program.write_text(
        f"{setup_cell(name).source}\n"
        "import checks, helpers\nprint(helpers.__file__, checks.__file__)"
    )
    command = [sys.executable, program]
    for folder in (ROOT, *(ROOT / "notebooks" / place for place in SETUPS[name])):
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        assert found.stdout.split(" ", 1) == [
            str(ROOT / "helpers" / "__init__.py"),
            f"{ROOT / 'notebooks' / 'exercises' / 'checks' / '__init__.py'}\n",
        ]
    lost = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "Open this notebook inside the repository" in lost.stderr


@every_setup
def test_the_set_up_cell_clones_the_course_in_colab(name, tmp_path):
    """From a clone's address, twice, without what pip would install."""
    source = setup_cell(name).source.replace("/content", str(tmp_path))
    source = re.sub(r"(?m)^REPOSITORY = .*$", f"REPOSITORY = {str(ROOT)!r}", source)
    colab = tmp_path / "google" / "colab"
    colab.mkdir(parents=True)
    (colab / "__init__.py").touch()
    program = f"""
import subprocess, sys
import google.colab
subprocess.run = lambda command, **how: subprocess.CompletedProcess(command, 0, stdout="")
for _ in range(2):
    exec({source!r})
import helpers, importlib, pkgutil, checks
for module in pkgutil.iter_modules(checks.__path__):
    importlib.import_module("checks." + module.name)
print(helpers.__file__)
"""
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(tmp_path / "course" / "helpers" / "__init__.py")


# --- What is written out --------------------------------------------------------------------------


def class_cell(path, name):
    (found,) = [cell.source for cell in cells_of(path) if cell.source.startswith(f"class {name}(")]
    return found


def written(path, *names):
    """Functions and classes of a notebook's cells, by name, and the number of their lines that are
    neither a signature nor a docstring."""
    nodes = {
        node.name: (cell.source, node)
        for cell in cells_of(path)
        for node in ast.parse(cell.source).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    sources, lines = [], 0
    for source, node in (nodes[name] for name in names):
        text = ast.get_source_segment(source, node)
        sources.append(text)
        bodies = [n for n in ast.walk(node) if isinstance(n, ast.FunctionDef)]
        spans = [
            (part.lineno, part.end_lineno)
            for body in bodies
            for part in body.body
            if ast.get_docstring(body) is None or part is not body.body[0]
        ]
        code = {n for first, last in spans for n in range(first, last + 1)}
        shown = source.splitlines()
        lines += sum(bool(shown[n - 1].strip()) and shown[n - 1].strip()[0] != "#" for n in code)
    return "\n".join(sources), lines


def run_alone(source, **space):
    """What a source defines, if it has these names, torch and the built-in ones only."""
    space |= {"torch": torch, "nn": torch.nn, "math": math}
    exec(source, space)  # an unknown name raises NameError when it is used
    return space


def test_the_training_loop_of_notebook_04_is_the_courses():
    source, lines = written(LESSONS[3], "training_loop")
    assert lines <= 15
    names = ("make_optimizer", "epoch_order", "learning_rate_at")
    space = run_alone(
        source, loss_sum=loss_sum, **{name: getattr(training, name) for name in names}
    )
    stories, config = (
        made_stories(),
        training.TrainingConfig(
            max_steps=7, warmup_steps=3, batch_size=16, validate_every=1, precision="fp32"
        ),
    )
    ids = training.encode_stories(TOKENIZER, stories.train, 12)  # (N, T)
    ours = space["training_loop"](made_model(), ids, config, 7, 7)
    theirs = training.train(made_model(), TOKENIZER, stories, config).column("train_loss")
    assert ours == list(theirs)


def test_the_sampler_of_notebook_05_is_the_courses():
    filters, lines = written(LESSONS[4], "keep_top_k", "keep_top_p")
    assert lines <= 8
    loop, lines = written(LESSONS[4], "write")
    assert lines <= 15
    model = made_model().eval()

    def next_logits(ids):
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0, -1]  # (V,)
        logits[TOKENIZER.excluded_ids(len(logits))] = -torch.inf
        return logits

    space = run_alone(f"{filters}\n{loop}", next_logits=next_logits, tokenizer=TOKENIZER)
    for seed, options in enumerate(({}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6})):
        stream = torch.Generator().manual_seed(seed)
        draw = lambda stream=stream: torch.rand(1, generator=stream, dtype=torch.float64)
        prompt = [TOKENIZER.sos_id, *TOKENIZER.encode("w1 w2")]
        ours = space["write"](prompt, 6, draw, **options)
        theirs = generate(model, TOKENIZER, ["w1 w2"], max_new_tokens=6, seed=seed, **options)
        assert ours == theirs[0].ids, options


def test_the_beams_of_notebook_05_are_the_courses():
    source, lines = written(LESSONS[4], "candidates_of", "slow_beams")
    assert lines <= 15
    model = made_model().eval()

    def next_logits(ids):
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0, -1]  # (V,)
        logits[[*TOKENIZER.excluded_ids(len(logits)), TOKENIZER.eos_id]] = -torch.inf
        return logits

    space = run_alone(source, next_logits=next_logits)
    beams, _ = space["slow_beams"]([TOKENIZER.sos_id], 3, 4)
    every = [([], 0.0)]  # exhaustive: without <eos> all texts of four words
    for _ in range(4):
        every = [
            ([*ids, word], total + score)
            for ids, total in sorted(every, key=lambda one: -one[1])[:3]
            for word, score in enumerate(
                next_logits([TOKENIZER.sos_id, *ids]).log_softmax(-1).tolist()
            )
        ]
    best = sorted(every, key=lambda one: -one[1])[:3]
    assert [ids for _, ids in beams] == [ids for ids, _ in best]


def test_the_cache_of_notebook_05_is_the_courses():
    source, lines = written(LESSONS[4], "CatCache")
    assert lines <= 8
    model, cache = made_model().eval(), run_alone(source)["CatCache"]()
    ids = torch.randint(4, len(TOKENIZER), (2, 10))  # (B, T)
    with torch.no_grad():
        parts = [model(ids[:, :4], cache), *(model(ids[:, t : t + 1], cache) for t in range(4, 10))]
        assert (torch.cat(parts, dim=1) - model(ids)).abs().max() < 1e-5


def test_the_accumulation_of_notebook_06_has_the_gradient_of_the_whole_batch():
    source, lines = written(LESSONS[5], "accumulation_step")
    assert lines <= 6
    batch = training.encode_stories(TOKENIZER, made_stories().train[:40], 12).long()  # (40, T)
    model = made_model()
    logits = model(batch[:, :-1]).flatten(0, 1)  # (40 · (T-1), V)
    F.cross_entropy(logits, batch[:, 1:].flatten(), ignore_index=0).backward()
    whole = [p.grad.clone() for p in model.parameters()]
    nothing = torch.optim.SGD(model.parameters(), lr=0.0)
    space = run_alone(source, pad_id=0, loss_sum=loss_sum)
    space["accumulation_step"](model, nothing, batch, 16)
    for p, expected in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-4, atol=1e-6)


def test_the_checkpointing_of_notebook_06_is_exact_if_the_random_state_is_replayed():
    source, lines = written(LESSONS[5], "Recompute")
    assert lines <= 12
    more, _ = written(LESSONS[5], "RecomputeTheSame")
    space = run_alone(f"{source}\n{more}")
    model = made_model(dropout=0.5).train()
    block, mask = model.blocks[0], model.mask
    x = torch.randn(3, 12, model.config.d_model, requires_grad=True)  # (B, T, D)

    def gradients(way):
        model.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        way(lambda x: block(x, mask)[0], x).square().sum().backward()
        return torch.cat([p.grad.flatten() for p in block.parameters()])  # (P,)

    plain = gradients(lambda function, x: function(x))
    assert not torch.equal(gradients(space["Recompute"].apply), plain)
    assert torch.equal(gradients(space["RecomputeTheSame"].apply), plain)


def test_the_decoder_of_notebook_03_is_the_courses():
    """It uses torch and what the reader has seen; at full size its logits are the helper's."""
    source = class_cell(LESSONS[2], "Decoder")
    assert len(source.splitlines()) <= 35
    seen = {
        name: getattr(course, name)
        for name in ("DecoderBlock", "LayerNorm", "sinusoidal_positions")
    }
    space = {"torch": torch, "nn": torch.nn} | seen
    tree = ast.parse(source)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    made = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    assert names - made - arguments <= {*space, "super", "range", "float"}
    exec(source, space)
    torch.manual_seed(0)
    theirs = course.Decoder(ModelConfig())
    ours = space["Decoder"](ModelConfig())
    ours.load_state_dict(theirs.state_dict())
    ids = torch.randint(4, 10_000, (3, 64))
    with torch.no_grad():
        assert (ours(ids) - theirs(ids)).abs().max() <= 1e-6
