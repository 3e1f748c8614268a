"""Execute the notebooks from their paired texts; two runs of one text give the same bytes.

    python report/execute.py                 every notebooks/src/NN.py -> notebooks/NN.ipynb
    python report/execute.py --build         the same -> build/notebooks/NN.ipynb
    python report/execute.py --corpus PATH   on another corpus -> build/<corpus>/NN.ipynb
    python report/execute.py --sync          inputs only; the repository's address too
    python report/execute.py 04 05           some of them, by the beginning of their name
    python report/execute.py --jobs 2        two at a time, each with its part of the cores, unless
                                             $OMP_NUM_THREADS says how many threads

The times that a notebook measures are the machine's only if it runs alone: one job, the default.

Their figures and numbers go to figures/<corpus>/, with --build to build/figures/<corpus>/, and if
$FIGURES_DIR is set to its <corpus>/. With --build, and no name, what an earlier run left there is
removed first.

A notebook is written when it has run to its end without an error, without a warning of our own
code and without a path of this machine in an output. One that has not goes to build/failed/ to be
looked at, and the run goes on with the next. What libraries say on stderr is left out.
"""

import argparse
import hashlib
import os
import re
import shutil
import sys
import time
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from helpers.notebook import figures_root  # noqa: E402
from helpers.stories import CORPORA, corpus_name  # noqa: E402
from helpers.support.files import make_folder, user_path, write_whole  # noqa: E402

NOTEBOOKS = ROOT / "notebooks"
BUILD = ROOT / "build"
TAKEN = ("notebooks", "figures", "failed", "benchmark", "hub")  # folders of build/
LONGEST = ("04", "06", "05")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
# Without the version of this machine's Python; the extension is for `nbconvert --to script`.
LANGUAGE = {"name": "python", "file_extension": ".py"}
MACHINE_PATH = re.compile(r"(?<![\w.~*])/(?:home|Users|root|tmp|content|mnt)/\w[^\s'\"]*")
# A warning that our own code causes: in a cell, in helpers/ or in another file of the repository.
OUR_WARNING = re.compile(
    rf"^(?!{re.escape(sys.prefix)}/)(?:.*ipykernel_\d+|{re.escape(str(ROOT))}/).*:\d+: "
    r"(\w*Warning: .*)$",
    re.MULTILINE,
)


def sources(names: list[str]) -> list[Path]:
    """The paired texts whose names begin with one of `names`; all of them if there is none."""
    found = sorted((NOTEBOOKS / "src").glob("*.py"))
    if not found:
        raise SystemExit("notebooks/src holds no notebook")
    wanted = [Path(name).stem for name in names]
    for name in wanted:
        if not any(path.stem.startswith(name) for path in found):
            raise SystemExit(
                f"no notebook begins with {name!r}: choose from "
                f"{', '.join(path.stem for path in found)}"
            )
    return [path for path in found if not wanted or path.stem.startswith(tuple(wanted))]


def read_source(path: Path):
    """The notebook of a paired text: no outputs, and cell ids that depend on the cells alone."""
    notebook = jupytext.read(path)
    set_ids(notebook)
    set_folds(notebook)
    notebook.metadata = type(notebook.metadata)(KERNEL)
    return notebook


def set_folds(notebook) -> None:
    """Fold in JupyterLab what Colab folds as a form, and in both the outputs of `hide-output`."""
    for cell in notebook.cells:
        if cell.metadata.get("cellView") == "form":
            cell.metadata.setdefault("jupyter", {})["source_hidden"] = True
        if "hide-output" in cell.metadata.get("tags", []):
            cell.metadata.setdefault("jupyter", {})["outputs_hidden"] = True
            cell.metadata["collapsed"] = True


def set_ids(notebook) -> None:
    seen = Counter()
    for cell in notebook.cells:
        key = f"{cell.cell_type}\n{cell.source}"
        cell.id = hashlib.sha256(f"{seen[key]}\n{key}".encode()).hexdigest()[:8]
        seen[key] += 1


def set_corpus(notebook, corpus: str) -> None:
    """Overwrite CORPUS in the cell tagged `parameters`. Ends the program if there is no such
    line.
    """
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source, count = re.subn(
                r"(?m)^CORPUS = .*$", lambda _: f"CORPUS = {corpus!r}", cell.source
            )
            if count == 1:
                return
    raise SystemExit(
        '--corpus: a notebook has no cell tagged "parameters" with one line `CORPUS = ...`'
    )


def execute(notebook, folder: Path, **environment: str) -> list[str]:
    """Run every cell in place, in this folder and with these variables in its environment. Returns
    what is wrong with the outcome, one line each; an empty list is success.
    """
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=None,
        record_timing=False,  # dates would change the file at every run
        store_widget_state=False,  # GitHub refuses some states, and their ids are random
        extra_arguments=["--log-level=40"],  # without the kernel's line about its transport
        coalesce_streams=True,  # the number of pieces in which a text arrives is chance
        resources={"metadata": {"path": str(folder)}},
    )
    problems, raised = [], ""
    try:
        client.execute(env=os.environ | environment)
    except CellExecutionError as error:
        raised = f"{error.ename}: {error.evalue}"
    except DeadKernelError:
        problems.append("the kernel died (out of memory?)")
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = LANGUAGE
    for number, cell in enumerate(notebook.cells, start=1):
        kept = []
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                problems.append(f"{place(number, cell)} raised {raised or output.ename}")
            elif output.get("name") == "stderr":
                found = OUR_WARNING.findall(output.text)
                problems += [f"{place(number, cell)} warns: {warning}" for warning in found]
                continue
            elif only_widget(output):
                continue
            output.get("data", {}).pop(WIDGET_VIEW, None)  # a view without its state shows nothing
            kept.append(output)
        if "outputs" in cell:
            cell.outputs = kept
    return problems


def only_widget(output) -> bool:
    """A progress bar, say: without its state there is nothing to show but the bar's first line."""
    data = output.get("data", {})
    return WIDGET_VIEW in data and not any(kind.startswith("image/") for kind in data)


def place(number: int, cell) -> str:
    lines = cell.source.strip().splitlines()
    return f"cell {number} ({lines[0][:60] if lines else 'empty'})"


def machine_folders() -> set[Path]:
    """Folders whose names tell a machine: the repository's, Python's, the user's home."""
    folders = {ROOT, Path(sys.prefix)}
    with suppress(RuntimeError):  # a home may be unset
        folders.add(Path.home())
    return {folder for folder in folders if len(folder.parts) > 1}  # a home may be /


def machine_paths(notebook) -> list[str]:
    """Absolute paths of a machine that the notebook's text outputs show, one line each."""
    here = re.compile("|".join(re.escape(f"{path}{os.sep}") for path in machine_folders()))
    problems = []
    for number, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", []):
            texts = [output.get("text", ""), *output.get("traceback", [])]
            texts += [
                str(data)
                for kind, data in output.get("data", {}).items()
                if not kind.startswith("image/")
            ]
            for text in texts:
                if match := MACHINE_PATH.search(text) or here.search(text):
                    problems.append(
                        f"{place(number, cell)} shows a path of this machine: {match[0]}"
                    )
    return problems


def write(notebook, path: Path) -> None:
    make_folder(path.parent)
    write_whole(path, jupytext.writes(notebook, fmt="ipynb").rstrip("\n") + "\n")


def run(paths: list[Path], corpus: str | None, build: bool, jobs: int = 1) -> int:
    folder, argument = BUILD / "notebooks" if build else NOTEBOOKS, corpus
    # The kernel runs in another folder.
    figures = figures_root(BUILD / "figures" if build else None).resolve()
    environment = {"FIGURES_DIR": str(figures)}
    if corpus is not None:
        folder = BUILD / corpus_name(corpus)
        if folder.name in TAKEN:
            raise SystemExit(f"--corpus {corpus}: build/{folder.name}/ has another use; rename it")
        if corpus not in CORPORA:
            argument = str(user_path(corpus).resolve())
            if not Path(argument).exists():
                raise SystemExit(f"--corpus {corpus}: there is no such file or folder")

    def one(path: Path) -> list[str]:
        begin = time.monotonic()
        notebook = read_source(path)
        if corpus is not None:
            set_corpus(notebook, argument)
        problems = execute(notebook, NOTEBOOKS, **environment)
        if corpus is None:
            problems += machine_paths(notebook)
        else:
            set_corpus(notebook, corpus)  # as it was typed
        name = f"{path.stem}.ipynb"
        write(notebook, (BUILD / "failed" if problems else folder) / name)
        word = "FAILED" if problems else "ok"
        print(f"{path.stem:24} {word:6} {time.monotonic() - begin:6.0f} s", flush=True)
        for problem in problems:
            print(f"    {path.stem}: {problem}", file=sys.stderr, flush=True)
        return problems

    failed, in_turn = [], map if jobs == 1 else ThreadPoolExecutor(jobs).map
    for batch in in_batches(paths, jobs):
        together = min(jobs, len(batch))
        if together > 1 and "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(max(1, CORES // together))
        else:
            environment.pop("OMP_NUM_THREADS", None)
        try:
            outcomes = zip(batch, in_turn(one, batch), strict=True)
            failed += [path.stem for path, problems in outcomes if problems]
        except KeyboardInterrupt:
            if jobs > 1:
                os._exit(130)  # the other threads would run on; the kernels end with this process
            raise
    if failed:
        print(f"not written: {', '.join(sorted(failed))}; see build/failed/", file=sys.stderr)
    return 1 if failed else 0


def in_batches(paths: list[Path], jobs: int) -> list[list[Path]]:
    """What may run together, the longest first: no core waits long at the end. The results read
    what the others wrote, and come last.
    """
    if jobs == 1:
        return [paths]
    ranks = {number: rank for rank, number in enumerate(LONGEST)}
    others = [path for path in paths if not path.stem.endswith("results")]
    others.sort(key=lambda path: ranks.get(path.stem[:2], len(LONGEST)))
    return [others, [path for path in paths if path not in others]]


# Pairs --------------------------------------------------------------------------------------------


def repository() -> str:
    """The repository's address in pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"][
        "Repository"
    ]


def with_repository(text: str) -> str:
    """A text whose Colab links and `REPOSITORY = "..."` carry the address of pyproject.toml."""
    address = repository().removesuffix("/")
    text = re.sub(
        r"(/github/)[\w.-]+/[\w.-]+(/blob/)",
        rf"\g<1>{'/'.join(address.split('/')[-2:])}\g<2>",
        text,
    )
    return re.sub(r'(?m)^( *REPOSITORY = )".*"$', rf'\g<1>"{address}"', text)


def sync(paths: list[Path]) -> int:
    """Write the inputs of each pair. A cell that has not changed keeps its outputs; another loses
    them.
    """
    renew_address([*paths, ROOT / "README.md"])
    for path in paths:
        stale = write_inputs(read_source(path), NOTEBOOKS / f"{path.stem}.ipynb")
        print(f"{path.stem:24} {f'{stale} cells to execute' if stale else 'ok'}")
    return 0


def renew_address(paths: list[Path]) -> None:
    for path in paths:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if with_repository(text) != text:
            write_whole(path, with_repository(text))


def write_inputs(notebook, target: Path) -> int:
    """Write a notebook that is not executed, with the outputs that `target` has of the same cells.
    Returns the number of cells without.
    """
    done, stale = {}, 0
    if target.exists():
        before = jupytext.read(target)
        for cell in before.cells:
            cell.source = with_repository(cell.source)
        set_ids(before)
        done = {cell.id: cell for cell in before.cells}
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        if cell.id in done:
            cell.outputs, cell.execution_count = (
                done[cell.id].outputs,
                done[cell.id].execution_count,
            )
        stale += cell.execution_count is None
    notebook.metadata["language_info"] = LANGUAGE
    write(notebook, target)
    return stale


def inputs(notebook) -> list[tuple]:
    """What a notebook and its paired text must share: kind, text and tags of each cell."""
    return [
        (cell.cell_type, cell.source, tuple(cell.metadata.get("tags", [])))
        for cell in notebook.cells
    ]


def out_of_step() -> list[str]:
    """The names of notebooks that differ from their paired text, or that lack their other half.
    Dates do not matter.
    """
    texts = {path.stem: path for path in (NOTEBOOKS / "src").glob("*.py")}
    notebooks = {path.stem: path for path in NOTEBOOKS.glob("*.ipynb")}
    differ = {
        name
        for name in texts.keys() & notebooks.keys()
        if inputs(jupytext.read(texts[name])) != inputs(jupytext.read(notebooks[name]))
    }
    return sorted((texts.keys() ^ notebooks.keys()) | differ)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", help="the beginnings of the notebooks' names; all if there is none"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--build", action="store_true", help="leave the committed notebooks alone")
    how.add_argument(
        "--corpus", help='"bundled", "tinystories", or the path of a file or folder of stories'
    )
    how.add_argument(
        "--sync", action="store_true", help="write the notebooks' inputs, execute nothing"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, choices=range(1, 65), metavar="N", help="so many at a time"
    )
    options = parser.parse_args()
    paths = sources(options.names)
    if options.sync:
        return sync(paths)
    if options.corpus and options.jobs > 1:
        parser.error("--corpus runs one at a time: a notebook reads the model that 04 trains")
    if options.build and not options.names:
        for left in ("notebooks", "figures"):
            shutil.rmtree(BUILD / left, ignore_errors=True)
    try:
        return run(paths, options.corpus, options.build, options.jobs)
    except ValueError as error:  # of a corpus's name
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
