"""The files around the code agree with each other: dependencies, pins, commands, addresses."""

import ast
import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import jupytext
import pytest
from licences import licences
from support import report_script

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PROJECT = tomllib.loads(PYPROJECT)["project"]
EXTRAS = PROJECT["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = [
    path
    for folder in ("helpers", "notebooks/src", "notebooks/exercises", "report", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
OURS = {"helpers", "checks", "colab", *(path.stem for path in CODE)}

# Where a package is imported under another name, and where one is used without an import.
IMPORT_NAME = {
    "pypandoc-binary": "pypandoc",
    "ipython": "IPython",
    "pillow": "PIL",
    "huggingface-hub": "huggingface_hub",
    "axe-playwright-python": "axe_playwright_python",
    "fasttext-numpy2": "fasttext",
}
USED_BY = {
    "fasttext-numpy2": (
        ROOT / "helpers/vectors.py",
        "fasttext.train_unsupervised",
    ),  # in a process of its own
    "ipykernel": (ROOT / "report/execute.py", 'kernel_name="python3"'),
    "voila": (ROOT / "tests/test_browser.py", '"-m", "voila"'),
    "pytest-xdist": (ROOT / "Makefile", "--dist loadfile"),
    "nbval": (ROOT / "Makefile", "--nbval-current-env"),
    "ruff": (ROOT / "Makefile", "ruff check"),
}


def distribution(requirement):
    """The normalised name in a line such as `torch>=2.9` or `jupytext==1.19.6`."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def version(text):
    return tuple(map(int, re.findall(r"\d+", text)))


DECLARED = [item for group in (PROJECT["dependencies"], *EXTRAS.values()) for item in group]
DECLARED = {distribution(item): item for item in DECLARED if distribution(item) != PROJECT["name"]}
PINS = dict(
    re.fullmatch(r"([\w.-]+)==(\S+)", line).groups()
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
)
PINS = {distribution(name): pin for name, pin in PINS.items()}
TORCH = re.search(r"^TORCH \?= torch==(\S+)$", MAKEFILE, re.M)[1]


def project_files():
    """Every text file that the repository carries or would carry."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0, (
        f"this test asks git which files belong to the project: {listed.stderr}"
    )
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in {".safetensors", ".png", ".bin"} or not path.is_file():
            continue
        yield name, path.read_text(encoding="utf-8")


def imported():
    """{top-level module: files that import it}, without the standard library and this project's
    own.
    """
    found = {}
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                found.setdefault(name.split(".")[0], set()).add(path.name)
    return {
        name: files for name, files in found.items() if name not in OURS | sys.stdlib_module_names
    }


@pytest.mark.parametrize("name", DECLARED)
def test_every_declared_package_is_used(name):
    if name in USED_BY:
        path, text = USED_BY[name]
        assert text in path.read_text(encoding="utf-8")
    else:
        assert IMPORT_NAME.get(name, name) in imported()


def test_every_imported_package_is_declared():
    names = {IMPORT_NAME.get(name, name) for name in DECLARED}
    undeclared = {name: files for name, files in imported().items() if name not in names}
    assert not undeclared, "add these to pyproject.toml"


@pytest.mark.parametrize("name", DECLARED)
def test_every_declared_package_is_pinned_within_its_bound(name):
    pin = TORCH if name == "torch" else PINS[name]
    assert version(pin) >= version(DECLARED[name].partition(">=")[2])


def test_the_pins_leave_torch_and_its_build_to_the_makefile():
    prefixes = ("torch", "triton", "nvidia", "cuda", PROJECT["name"])
    assert not [name for name in PINS if name.startswith(prefixes)]
    setup = MAKEFILE.partition("$(READY): pyproject.toml constraints.txt")[2]
    assert re.findall(r"pip install --quiet (.*)", setup) == [
        "$(TORCH) -c constraints.txt",
        '-c constraints.txt -r "$(VENV)/requirements.txt"',
    ]


def test_the_makefile_installs_what_is_declared():
    program = re.search(r"^REQUIREMENTS := ((?:.*\\\n)*.*)$", MAKEFILE, re.MULTILINE)[1]
    command = [sys.executable, "-c", re.sub(r"\\\n *", "", program)]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert sorted(listed.split()) == sorted(DECLARED.values())


def test_every_dependency_has_a_reason():
    lines = [
        line.strip() for line in PYPROJECT.splitlines() if re.match(r'\s+"[\w.-]+[>=\[]', line)
    ]
    lines = [line for line in lines if not line.startswith((f'"{PROJECT["name"]}', '"E', '"RUF'))]
    assert len(lines) == len(DECLARED)
    without = [line for line in lines if not re.search(r'",\s+# \S+', line)]
    assert not without


def test_environment_yml_installs_the_same():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    items = [
        re.fullmatch(r"\s*- ([^#]+?)\s*(#.*)?", line).groups()
        for line in text.splitlines()
        if "- " in line
    ]
    wanted = {"-c constraints.txt", f"torch=={TORCH}", "-e .[dev]", "pip", "python=3.12"}
    assert wanted <= {item for item, _ in items}
    assert all(reason for item, reason in items if item in wanted)
    extras = re.search(r"-e \.\[([\w,]+)\]", text)[1].split(",")
    assert set(extras) <= EXTRAS.keys()
    assert f"name: {PROJECT['name']}" in text


def test_ci_runs_make_test_and_nothing_else():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    text = re.sub(
        r"\nif .*?\nfi\n", "\n", script.read_text(encoding="utf-8"), flags=re.DOTALL
    )  # installs Chromium
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines == [
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")/.."',
        "exec make test",
    ]
    workflow = (ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8")
    assert re.findall(r"run: (.*)", workflow) == [".ci/run"]


def test_the_makefile_tells_all_its_commands():
    commands = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()
    told = re.findall(
        r"^#   make (\w+)", MAKEFILE.partition("# torch comes first")[0], re.MULTILINE
    )
    assert set(told) == set(commands)
    assert set(re.findall(r"`make (\w+)", README)) <= set(commands)


@pytest.mark.parametrize(
    ("arguments", "commands"),
    [
        (["report"], ["report/execute.py --build --jobs 2", "report/build.py build/notebooks"]),
        (["notebooks"], ["report/execute.py", "report/exercises.py"]),
        (["sync"], ["report/execute.py --sync", "report/exercises.py --sync"]),
        (["render"], ["report/build.py"]),
        (["benchmark"], ["report/benchmark.py"]),
        (["benchmark", "RECORD=1"], ["report/benchmark.py --record"]),
        (
            ["record", "CORPUS=it's $x & ü"],
            [
                "report/protocol.py 'it'\\''s $x & ü'",
                "report/epochs.py 'it'\\''s $x & ü'",
                "report/execute.py --corpus 'it'\\''s $x & ü'",
            ],
        ),
        (
            ["publish", "CORPUS=a b", "REPO=c/$d"],
            ["report/publish.py 'a b' --context '64' --to 'c/$d'"],
        ),
    ],
)
def test_a_command_of_the_makefile_runs(arguments, commands):
    """Tracked files are renewed by the targets that say so; a path reaches a program as it is."""
    command = ["make", "--dry-run", "VENV=.venv", *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "MAKEFLAGS"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    programs = re.findall(r'^"\.venv/bin/python" (report/.*?) ?$', done.stdout, re.MULTILINE)
    assert programs == commands, done.stderr


def test_no_file_names_a_package_index_or_a_path_of_a_machine():
    hosts = ["py" + "pi", "python" + "hosted", "download." + "pytorch", "anaconda" + ".org"]
    index = re.compile("|".join(map(re.escape, hosts)) + r"|index-url\s+\w+:", re.I)
    folders = report_script("execute").machine_folders()
    here = "|".join(re.escape(f"{path}/") for path in folders)
    machine = re.compile(rf"{here}|(?<![\w.~*(|:])/(?:home|Users)/\w")
    for name, text in project_files():
        # The letters of a picture are random: any word may be among them.
        text = re.sub(r'"image/png": ".*"|"data:image/png;base64,[^"]*"', "", text)
        assert not index.search(text), f"{name} names a package index: {index.search(text)[0]}"
        assert not machine.search(text), (
            f"{name} holds a path of a machine: {machine.search(text)[0]}"
        )


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").rglob("*.ipynb")), ids=lambda path: path.stem
)
def test_notebooks_carry_the_address_of_the_repository(path):
    address = PROJECT["urls"]["Repository"]
    owner_and_name = "/".join(address.split("/")[-2:])
    site = "https://colab.research.google.com"
    place = path.relative_to(ROOT).as_posix()
    target = f"{site}/github/{owner_and_name}/blob/main/{place}"
    cells = jupytext.read(path).cells
    badges = [cell.source for cell in cells if "colab-badge.svg" in cell.source]
    assert len(badges) == 1
    assert f"[![Open In Colab]({site}/assets/colab-badge.svg)]({target})" in badges[0], (
        "run `make sync`"
    )
    setups = [
        cell.source for cell in cells if cell.cell_type == "code" and "REPOSITORY = " in cell.source
    ]
    assert len(setups) == 1
    assert f'REPOSITORY = "{address}"' in setups[0], "run `make sync`"


@pytest.mark.skipif(
    "WITHOUT_NETWORK" not in os.environ,
    reason="the network is not cut here: see tests/without_network.py",
)
def test_all_of_this_runs_without_a_network():
    """The notebooks among it: `make test` runs them beside this test."""
    with pytest.raises(OSError, match="unreachable"):
        socket.create_connection(("192.0.2.1", 80), timeout=5)  # an address for examples


def test_every_package_names_a_licence_that_allows_its_use():
    """Permissive ones, and those that ask to share changes of their own files only (MPL)."""
    stated = licences()
    assert len(stated) > 80
    allowed = re.compile(
        "MIT|BSD|Apache|ISC|MPL|Mozilla|PSF|Python Software Foundation|HPND|Unlicense|zlib", re.I
    )
    assert {
        name: text for name, text in stated.items() if not allowed.search(text) or "GPL" in text
    } == {}
