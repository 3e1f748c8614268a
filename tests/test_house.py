"""The house rules of helpers/: small modules in layers, and private names that stay at home."""

import ast
import io
import re
import tokenize
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HELPERS = {
    ".".join(path.relative_to(ROOT / "helpers").with_suffix("").parts): path
    for path in sorted((ROOT / "helpers").rglob("*.py"))
    if path.name != "__init__.py"
}
OTHERS = [
    path
    for folder in ("notebooks/src", "notebooks/exercises", "report", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
# Each module imports only modules of earlier lines; those of one line in this order.
LAYERS = """
    support.checks support.files support.hardware support.hub
    tokenizer kv_cache memory
    loss model
    grammar stories fasttext_bin vectors
    checkpoints
    muon
    training
    decoding
    evaluation heads
    recipe
    plots attention_plots explorers notebook
""".split()

every_module = pytest.mark.parametrize("name", HELPERS)


def read(path):
    return path.read_text(encoding="utf-8")


def docstring_lines(tree):
    """The numbers of the lines that docstrings fill."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    first = (node.body[0] for node in ast.walk(tree) if isinstance(node, kinds) and node.body)
    texts = (e for e in first if isinstance(e, ast.Expr) and isinstance(e.value, ast.Constant))
    return {line for text in texts for line in range(text.lineno, text.end_lineno + 1)}


def logical_lines(source):
    """Statements, docstrings not counted: no formatter changes their number."""
    skip, count, start = docstring_lines(ast.parse(source)), 0, None
    aside = (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NEWLINE:
            count, start = count + (start not in skip), None
        elif token.type not in aside and start is None:
            start = token.start[0]
    return count


def test_lines_are_counted_as_they_are_meant():
    source = (
        '"""Two\nlines."""\n\nx = [\n    1,  # one\n]\ndef f():\n    "A docstring."\n    return x\n'
    )
    assert logical_lines(source) == 3


@every_module
def test_a_module_is_small(name):
    assert logical_lines(read(HELPERS[name])) <= 230


def test_all_of_it_is_small():
    assert sum(map(logical_lines, map(read, HELPERS.values()))) <= 2_700


@every_module
def test_a_function_is_short(name):
    source = read(HELPERS[name])
    tree, lines = ast.parse(source), enumerate(source.splitlines(), 1)
    code = {number for number, line in lines if line.strip() and line.strip()[0] != "#"}
    code -= docstring_lines(tree)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    length = {f.name: len(code & {*range(f.lineno, f.end_lineno + 1)}) for f in functions}
    assert not {function: number for function, number in length.items() if number > 50}


def shown():
    """The classes and functions whose source a notebook shows, as syntax trees."""
    texts = map(read, sorted((ROOT / "notebooks/src").glob("*.py")))
    names = {
        n for text in texts for n in re.findall(r"^show_source\((?:\w+\.)*(\w+)[,)]", text, re.M)
    }
    trees = [ast.parse(read(path)) for path in HELPERS.values()]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    kinds = ast.FunctionDef | ast.ClassDef
    return {n.name: n for n in nodes if isinstance(n, kinds) and n.name in names}


def test_a_listing_of_a_notebook_raises_at_most_one_error():
    raised = {n: sum(isinstance(x, ast.Raise) for x in ast.walk(t)) for n, t in shown().items()}
    assert len(raised) > 10
    assert not {name: number for name, number in raised.items() if number > 1}


def imports(tree):
    """(module, name) of each thing that is imported from helpers, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "helpers":
            module = node.module.partition(".")[2]
            for alias in node.names:
                inner = f"{module}.{alias.name}".strip(".")
                yield (inner, None) if inner in HELPERS else (module, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("helpers."):
                    yield alias.name.partition(".")[2], None


def test_the_package_names_its_modules_in_the_order_of_their_layers():
    assert set(HELPERS) == set(LAYERS)
    listed = re.findall(r"^    (\w+)(?:/| ) ", read(ROOT / "helpers/__init__.py"), re.M)
    assert listed == list(dict.fromkeys(name.split(".")[0] for name in LAYERS))


@every_module
def test_a_module_imports_earlier_layers_only(name):
    found = {module for module, _ in imports(ast.parse(read(HELPERS[name])))}
    assert not [module for module in found if LAYERS.index(module) >= LAYERS.index(name)]


def private(name):
    """Not those of a protocol, such as IPython's, which end with an underscore too."""
    return bool(re.fullmatch(r"_[a-zA-Z](\w*[a-zA-Z0-9])?", name or ""))


def private_uses(path):
    """Private names of helpers that a file imports, reaches through a module, or patches."""
    tree = ast.parse(read(path))
    found = {f"{module}.{name}" for module, name in imports(tree) if private(name)}
    names = {name.split(".")[-1] for name in HELPERS}
    modules = {alias: name for alias, name in aliases(tree).items() if name.split(".")[-1] in names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in modules and private(node.attr):
                found.add(f"{modules[node.value.id]}.{node.attr}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set(re.findall(r"\bhelpers(?:\.\w+)*\._[a-zA-Z]\w*", node.value))
    return found


def aliases(tree):
    """{name in this file: module of helpers} of the modules that it imports whole."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "helpers":
            inner = node.module.partition(".")[2]
            for alias in node.names:
                module = f"{inner}.{alias.name}".strip(".")
                if module in HELPERS:
                    found[alias.asname or alias.name] = module
    return found


@pytest.mark.parametrize("path", [*HELPERS.values(), *OTHERS], ids=lambda path: path.stem)
def test_private_names_stay_at_home(path):
    assert not private_uses(path)


def test_a_borrowed_private_name_is_noticed(tmp_path):
    path = tmp_path / "borrows.py"
    path.write_text(
        "from helpers import plots as p, training\n"
        "from helpers.stories import _read, load_stories\n"
        "p._png, training.train, training._seed\n"
        f"patch('helpers.vectors.{'_'}PROGRAM')\n"
    )
    assert private_uses(path) == {
        "stories._read",
        "plots._png",
        "training._seed",
        f"helpers.vectors.{'_'}PROGRAM",
    }


def test_no_private_name_means_two_things():
    homes = defaultdict(set)
    for name, path in HELPERS.items():
        for node in ast.walk(ast.parse(read(path))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                homes[node.name].add(name)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        homes[target.id].add(name)
    assert not {n: where for n, where in homes.items() if private(n) and len(where) > 1}
