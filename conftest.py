"""What every test run shares: tests and notebooks write to a temporary folder, and tracked files
stay as they are.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent
WRITTEN_BY_NOTEBOOKS = ("figures/**/*", "checkpoints/bundled*", "notebooks/**/*.ipynb")

settings.register_profile("course", deadline=None, derandomize=True, database=None)
settings.load_profile("course")


def fingerprint() -> dict[str, str]:
    """The digest of every file that a notebook could overwrite, by its path."""
    paths = (
        path for pattern in WRITTEN_BY_NOTEBOOKS for path in ROOT.glob(pattern) if path.is_file()
    )
    return {
        str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
    }


def pytest_configure(config):
    """Before any worker or kernel starts: they inherit this environment. A worker finds it set."""
    if hasattr(config, "workerinput"):
        config.figures_dir = os.environ["FIGURES_DIR"]
        return
    config.figures_dir = os.environ["FIGURES_DIR"] = tempfile.mkdtemp(prefix="figures-")
    # The workers share the cores: each has its part of them, and who waits does not spin.
    workers = config.getoption("numprocesses", None) or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["TQDM_DISABLE"] = (
        "1"  # a progress bar is an output, and the stored notebooks carry none
    )
    config.before = fingerprint()
    config.changed = []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Before a notebook's kernel starts: what it reads of another is what the repository carries,
    whether or not that one ran before and whatever it found on this machine.
    """
    os.environ["FIGURES_DIR"] = os.path.join(item.config.figures_dir, item.path.stem)


def pytest_collectstart(collector):
    """nbval compares what cells print, not what a library says on stderr, such as a font scan."""
    if type(collector).__name__ == "IPyNbFile":
        collector.skip_compare += ("stderr",)


def pytest_sessionfinish(session):
    config = session.config
    if hasattr(config, "workerinput"):
        return
    shutil.rmtree(config.figures_dir, ignore_errors=True)
    after = fingerprint()
    config.changed = sorted(
        path for path in config.before.keys() | after if config.before.get(path) != after.get(path)
    )
    if config.changed:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    if config.changed:
        terminalreporter.section(
            "FAILED: the tests changed files that the repository carries", red=True
        )
        terminalreporter.write_line("\n".join(config.changed))
