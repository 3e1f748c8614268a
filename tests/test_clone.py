"""A clone whose path, home and locale are awkward: the commands work there, and leave the files
that git tracks as they are.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from support import ROOT

NAME = "it's Übung & $x %20"
MISSING = "no clone can be made of this folder: it needs git, and the repository's .git"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("git") and (ROOT / ".git").exists()), reason=MISSING),
]
PYTHON = ".venv/bin/python"
COMMANDS = [
    ["make", "sync"],
    ["make", "render"],
    ["make", "publish", "CORPUS=bundled"],
    [PYTHON, "report/execute.py", "--build", "02"],
]


def run(*command, where, environment=None):
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def clone(place, *options):
    run("git", "clone", "--quiet", *options, str(ROOT), str(place), where=place.parent)


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A clone with a virtual environment that is this one, and newer than what it depends on."""
    course = tmp_path_factory.mktemp("clone") / NAME
    clone(course)
    (course / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        if part.name != ".ready":
            (course / ".venv" / part.name).symlink_to(part)
    (course / ".venv" / ".ready").touch()
    return course


@pytest.fixture
def environment(tmp_path):
    """That of somebody who has set nothing but a folder for scratch files, which is awkward too."""
    scratch = tmp_path / NAME
    scratch.mkdir()
    keep = "PATH LD_LIBRARY_PATH OMP_NUM_THREADS OMP_WAIT_POLICY".split()
    return {key: os.environ[key] for key in keep if key in os.environ} | {"TMPDIR": str(scratch)}


def check(course):
    assert (course / "build" / "report.html").is_file()
    assert (course / "build" / "live.html").is_file()
    assert (course / "build" / "book.pdf").read_bytes().startswith(b"%PDF")
    assert (course / "build" / "hub" / "bundled" / "model.safetensors").is_file()
    assert (course / "build" / "notebooks" / "02_attention.ipynb").is_file()
    assert run("git", "status", "--porcelain", where=course) == ""
    shutil.rmtree(course / "build")


def test_commands_work_if_the_home_is_the_root(course, environment, tmp_path):
    # Root could write there: these stay away from it.
    kept = {"MPLCONFIGDIR": matplotlib.get_cachedir(), "IPYTHONDIR": str(tmp_path)}
    for command in COMMANDS:
        run(*command, where=course, environment=environment | kept | {"HOME": "/"})
    check(course)


def test_commands_work_without_a_home_in_the_c_locale(course, environment, tmp_path):
    environment |= {"LC_ALL": "C", "MPLCONFIGDIR": str(tmp_path)}
    for command in COMMANDS[:-1]:
        run(*command, where=course, environment=environment)
    unwritable = environment | {"HOME": os.devnull + "/home"}
    run(*COMMANDS[-1], where=course, environment=unwritable)
    check(course)


def test_a_clone_that_would_change_line_ends_holds_the_same_bytes(tmp_path):
    clone(tmp_path / NAME, "-c", "core.autocrlf=true")
    listed = run("git", "ls-files", "--stage", "-z", where=ROOT).strip("\0").split("\0")
    stored = {path: entry.split()[1] for entry, path in (line.split("\t") for line in listed)}
    hash_all = ["git", "hash-object", "--no-filters", *stored]
    assert run(*hash_all, where=tmp_path / NAME).split() == list(stored.values())
    load = "from helpers.recipe import load_or_train; print(len(load_or_train('bundled')[1]))"
    assert int(run(sys.executable, "-c", load, where=tmp_path / NAME)) > 1000
