"""Find the bug: which diagnostic sees the bug of which program. All 36 pairs are run."""

import contextlib
import io
from importlib import import_module

import pytest
import torch
from support import report_script

exercises = report_script("exercises")
bugs = import_module("checks.bugs")  # which exercises lets be found


@pytest.fixture(scope="module")
def programs():
    """The six programs as the reader is given them."""
    names = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for part in exercises.read(exercises.sources(["06"])[0]):
            exec(part if isinstance(part, str) else part.stub, names)
    return {program: names[part] for program, part in bugs.PROGRAMS.items()}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seen_by(parts):
    return {name for name, diagnostic in bugs.DIAGNOSTICS.items() if diagnostic(parts).caught}


def test_no_diagnostic_sees_a_bug_where_there_is_none():
    assert seen_by(bugs.RIGHT) == set()


@pytest.mark.parametrize("program", bugs.PROGRAMS)
def test_a_bug_is_seen_by_the_diagnostics_that_the_table_says(program, programs):
    parts = bugs.Parts(**{bugs.PROGRAMS[program]: programs[program]})
    assert seen_by(parts) == bugs.DIAGNOSTICS.keys() - bugs.BLIND[program].keys()


def test_each_bug_is_seen_by_one_and_each_diagnostic_sees_one():
    seen = {name: bugs.DIAGNOSTICS.keys() - blind.keys() for name, blind in bugs.BLIND.items()}
    assert seen.keys() == bugs.PROGRAMS.keys()
    assert all(seen.values())
    assert set().union(*seen.values()) == bugs.DIAGNOSTICS.keys()
    unknown = [blind.keys() - bugs.DIAGNOSTICS.keys() for blind in bugs.BLIND.values()]
    assert not any(unknown)
