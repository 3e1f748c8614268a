"""A trained model goes to the Hub and comes back: against a small server that speaks the Hub's
language.
"""

import json
import re
import shutil
import subprocess
import sys

import pytest
from hub import Hub, hub_at, published
from support import ROOT, TOKENIZER, made_model, start

from helpers.checkpoints import save_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture
def hub(tmp_path):
    with hub_at(Hub, tmp_path / "hub") as environment:
        yield environment


@pytest.fixture
def project(tmp_path):
    """What publishing reads, in a folder of its own."""
    project, ignore = tmp_path / "project", shutil.ignore_patterns("__pycache__", "*.svg")
    for name in ("helpers", "report", "figures/bundled"):
        shutil.copytree(ROOT / name, project / name, ignore=ignore)
    (project / "checkpoints").mkdir()
    for name in ("checkpoints/bundled.safetensors", "pyproject.toml"):
        shutil.copy(ROOT / name, project / name)
    return project


def run(program, *arguments, where, environment):
    """One of the project's own programs."""
    command = [sys.executable, program, *arguments]
    environment = environment | {"PYTHONPATH": str(where)}
    return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True)


def publish(*arguments, where, environment):
    return run("report/publish.py", *arguments, where=where, environment=environment)


def test_it_goes_there_and_comes_back(hub, project):
    logged_in, to = hub | {"HF_TOKEN": "hf_abc"}, ("--to", "someone/stories")
    done = publish("bundled", *to, where=project, environment=logged_in)
    assert done.returncode == 0, done.stderr
    assert f"published: {hub['HF_ENDPOINT']}/someone/stories" in done.stdout
    files = dict(Hub.repositories["someone/stories"])
    card = files.pop("README.md").decode()
    assert files == published(project / "checkpoints" / "bundled.safetensors")

    stored = json.loads(files["config.json"])
    numbers = [project / "figures" / "bundled" / f"{part}.json" for part in ("04", "05")]
    training, decoding = (json.loads(path.read_text()) for path in numbers)
    continued = decoding["continuations"]["greedy"]
    assert f"validation loss to {stored['metadata']['validation_loss']:.3f}:\na perplexity" in card
    assert f"| greedy | {continued['perplexity']:.2f} | {continued['bleu']:.1f} |" in card
    assert f"| vocab size | {stored['model']['vocab_size']:,} |" in card
    assert re.search(r"^license: mit$", card, re.MULTILINE)
    # The perplexity, for the Hub to show.
    assert re.search(r"^\s+value: \d+\.\d+$", card, re.MULTILINE)

    shutil.rmtree(project / "checkpoints")  # from now on there is the Hub alone
    done = start("load_model", "someone/stories", "someone/else", environment=hub)
    assert done.stdout == f"{training['parameters']}\n", done.stderr
    told = "there is nothing called someone/else here, and the model someone/else did not come from"
    assert told in done.stderr
    (project / "use.py").write_text(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1])
    done = run("use.py", where=project, environment=hub)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 10  # a story


def test_files_of_two_runs_are_not_published(hub, project):
    path = project / "figures/bundled/04.json"
    numbers = json.loads(path.read_text())
    numbers["history"][-1]["validation_loss"] += 0.1
    path.write_text(json.dumps(numbers))
    done = publish("bundled", where=project, environment=hub)
    assert done.returncode == 1
    assert "files of two runs" in done.stderr
    assert not (project / "build").exists()


def test_the_model_of_whole_stories_has_a_place_and_a_card_of_its_own(hub, project):
    model = made_model(context_length=256)
    told = {"corpus": "bundled", "step": 9, "tokens": 99, "train_loss": 2.0, "validation_loss": 2.5}
    save_checkpoint(project / "checkpoints/bundled-256", model, TOKENIZER, told)
    run = {"rows": [told], "texts": {"ended": 0.625}}
    numbers = json.dumps({"runs": {"our recipe": {"0": run}}})
    (project / "figures/bundled/whole.json").write_text(numbers)
    done = publish("bundled", "--context", "256", where=project, environment=hub)
    assert done.returncode == 0, done.stderr
    card = (project / "build/hub/bundled-256/README.md").read_text()
    assert "62% come to an end within 256 tokens" in card
    assert "A text is at most\n256 tokens long" in card
    done = publish("bundled", "--context", "128", where=project, environment=hub)
    assert "train it with `python report/whole.py bundled`" in done.stderr


def test_a_model_that_is_not_there_is_said_in_a_line(hub, project):
    done = publish("elsewhere", where=project, environment=hub)
    assert done.returncode == 1
    assert "there is no corpus and no file or folder called 'elsewhere'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project / "build").exists()


@pytest.mark.parametrize(
    ("name", "logged_in", "message"),
    [
        ("someone/stories", False, "not logged in: run `hf auth login`"),
        ("no such name", True, "the Hub did not take no such name"),
    ],
)
def test_what_the_hub_refuses_is_said_in_a_line(hub, project, name, logged_in, message):
    environment = hub | ({"HF_TOKEN": "hf_abc"} if logged_in else {})
    done = publish("bundled", "--to", name, where=project, environment=environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert Hub.repositories == {}
    assert (project / "build/hub/bundled/model.safetensors").is_file()
