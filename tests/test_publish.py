"""A trained model goes to the Hub and comes back: against a small server that speaks the Hub's
language.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub import Hub, hub_at

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def hub(tmp_path):
    with hub_at(Hub, tmp_path / "hub") as environment:
        yield environment


@pytest.fixture
def project(tmp_path):
    """What publishing reads, in a folder of its own."""
    for name in ("helpers", "report", "checkpoints/bundled", "figures/bundled"):
        shutil.copytree(
            ROOT / name,
            tmp_path / "project" / name,
            ignore=shutil.ignore_patterns("__pycache__", "*.svg"),
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "project")
    return tmp_path / "project"


def run(*command, where, environment):
    return subprocess.run(
        [sys.executable, *command], cwd=where, env=environment, capture_output=True, text=True
    )


def publish(*arguments, where, environment):
    return run("report/publish.py", "bundled", *arguments, where=where, environment=environment)


LOAD = """
import sys
from helpers.training import load_checkpoint
for name in sys.argv[1:]:
    print(load_checkpoint(name)[0].num_parameters())
"""


def test_it_goes_there_and_comes_back(hub, project):
    done = publish(
        "--to", "someone/stories", where=project, environment=hub | {"HF_TOKEN": "hf_abc"}
    )
    assert done.returncode == 0, done.stderr
    assert f"published: {hub['HF_ENDPOINT']}/someone/stories" in done.stdout
    files = dict(Hub.repositories["someone/stories"])
    card = files.pop("README.md").decode()
    assert files == {
        path.name: path.read_bytes() for path in (project / "checkpoints/bundled").iterdir()
    }

    stored = json.loads(files["config.json"])
    training, decoding = (
        json.loads((project / f"figures/bundled/{n}.json").read_text()) for n in ("04", "05")
    )
    continued = decoding["continuations"]["greedy"]
    assert f"validation loss to {stored['metadata']['validation_loss']:.3f}: a perplexity" in card
    assert f"| greedy | {continued['perplexity']:.2f} | {continued['bleu']:.1f} |" in card
    assert f"| vocab size | {stored['model']['vocab_size']:,} |" in card
    assert re.search(r"^license: mit$", card, re.MULTILINE)
    assert re.search(
        r"^\s+value: \d+\.\d+$", card, re.MULTILINE
    )  # the perplexity, for the Hub to show

    shutil.rmtree(project / "checkpoints")  # from now on there is the Hub alone
    done = run("-c", LOAD, "someone/stories", "someone/else", where=project, environment=hub)
    assert done.stdout == f"{training['parameters']}\n", done.stderr
    assert (
        "there is no folder someone/else here, and the model someone/else did not come from"
        in done.stderr
    )


def test_files_of_two_runs_are_not_published(hub, project):
    path = project / "figures/bundled/04.json"
    numbers = json.loads(path.read_text())
    numbers["history"][-1]["validation_loss"] += 0.1
    path.write_text(json.dumps(numbers))
    done = publish(where=project, environment=hub)
    assert done.returncode == 1
    assert "files of two runs" in done.stderr
    assert not (project / "build").exists()


def test_a_model_that_is_not_there_is_said_in_a_line(hub, project):
    done = run("report/publish.py", "elsewhere", where=project, environment=hub)
    assert done.returncode == 1
    assert "is no complete checkpoint" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "logged_in", "message"),
    [
        ("someone/stories", False, "not logged in: run `hf auth login`"),
        ("no such name", True, "the Hub did not take no such name"),
    ],
)
def test_what_the_hub_refuses_is_said_in_a_line(hub, project, name, logged_in, message):
    environment = hub | ({"HF_TOKEN": "hf_abc"} if logged_in else {})
    done = publish("--to", name, where=project, environment=environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert Hub.repositories == {}
    assert (project / "build/hub/bundled/model.safetensors").is_file()
