"""Files are there whole or not at all: with a full disk, a folder that cannot be written to, or two
writers.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from test_training import QUICK, TOKENIZER, made_model, made_stories
from torture import cases, on_a_small_disk

from helpers.files import read_json, write_json, write_whole
from helpers.training import load_checkpoint, save_checkpoint, train

pytestmark = pytest.mark.torture


def test_what_is_written_is_there_and_nothing_else(tmp_path):
    write_whole(tmp_path / "a.txt", "é\n\ud800")
    write_whole(tmp_path / "a.txt", b"\0\r\n")  # bytes stay as they are
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.txt": b"\0\r\n"}


def test_what_a_killed_process_left_is_removed_an_hour_later(tmp_path):
    ends = (
        "a.txt.00000000.partial",
        "a.txt.00000001.partial",
        "b.txt.00000002.partial",
        "a.txt.00000003.txt",
    )
    names = [f".{end}" for end in (*ends, "a.txt.b.00000004.partial", "a.txt.bbbbbbbb.c.partial")]
    for name in names:
        (tmp_path / name).touch()
    for name in names[1:]:
        os.utime(tmp_path / name, (time.time() - 4000,) * 2)
    write_whole(tmp_path / "a.txt", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        {*names, "a.txt"} - {names[1]}
    )


def test_a_folder_that_is_gone_is_said(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"cannot write .*a\.txt \(.*\): its folder is gone; make it again"
    ):
        write_whole(tmp_path / "gone" / "a.txt", "")


def test_json_comes_back_and_a_change_is_noticed(tmp_path):
    path = tmp_path / "a.json"
    state = {
        "float": 0.1 + 0.2,
        "text": "é\ud800\0",
        "list": [1, None],
        "nested": {"b": True, "a": 1e300},
    }
    write_json(path, state, format=7)
    assert read_json(path, format=7) == state | {"format": 7}
    written = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
    path.write_text(json.dumps(written))  # other spaces, another order: the same content
    assert read_json(path, format=7) == state | {"format": 7}
    path.write_text(json.dumps(written | {"list": [1, 0]}))
    with pytest.raises(ValueError, match=r"a\.json was changed since it was saved"):
        read_json(path, format=7)
    with pytest.raises(ValueError, match="has format 7, this code reads format 6: update the code"):
        read_json(path, format=6)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "b.json", format=7)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, b'{"format": 7}']
)
def test_json_that_was_not_saved_here_is_refused(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"a\.json (is not what was saved|was changed since it was saved)"
    ):
        read_json(path, format=7)


WRITE = """
import sys
from pathlib import Path
from helpers.files import write_whole
folder, mark, times = sys.argv[1:]
for _ in range(int(times)):
    write_whole(Path(folder, "a.txt"), mark * 300_000)
"""


def test_readers_of_a_file_that_two_processes_write_see_it_whole(tmp_path):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path), mark, str(cases(60, 1_000))])
        for mark in "xy"
    ]
    seen = []
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "a.txt").exists():
            content = (tmp_path / "a.txt").read_text()
            assert len(content) == 300_000
            assert set(content) in ({"x"}, {"y"})
            seen.append(content[0])
    assert [writer.returncode for writer in writers] == [0, 0]
    assert set(seen) == {"x", "y"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


ON_A_SMALL_DISK = """
import json, os, subprocess, sys
from pathlib import Path
sys.path[:0] = ["tests", "."]
from dataclasses import replace
from test_training import QUICK, TOKENIZER, made_model, made_stories
from helpers.training import load_checkpoint, save_checkpoint, train

folder, problem = Path(sys.argv[1]), sys.argv[2]
run, kept = folder / "run", folder / "kept"
config = replace(QUICK, dropout=0.1, folder=str(run), checkpoint_every=1)
problems, steps = [], []

def cause(row, model):
    steps.append(row["step"])
    if row["step"] == 8 and not problems:
        save_checkpoint(kept, model, TOKENIZER, row)
        if problem == "full":
            with open(folder / "filler", "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(1024))
                except OSError:
                    pass
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)

def mend():
    if problem == "full":
        (folder / "filler").unlink()
    else:
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)

try:
    train(made_model(), TOKENIZER, made_stories(), config, on_validation=cause)
except OSError as error:
    problems.append(str(error))
model, _, metadata = load_checkpoint(kept)
try:
    save_checkpoint(kept, made_model(), TOKENIZER)
except OSError as error:
    problems.append(str(error))
again, _, metadata_again = load_checkpoint(kept)
same = metadata == metadata_again
same &= all((a == b).all() for a, b in zip(model.parameters(), again.parameters()))
names = sorted(path.name for path in folder.iterdir() if path.name != "filler")
mend()
history = train(made_model(seed=1), TOKENIZER, made_stories(), config, resume_from=run)
log = (run / "log.csv").read_text()
found = {"problems": problems, "same": bool(same), "steps": steps, "names": names, "log": log}
print(json.dumps(found))
"""


@pytest.mark.parametrize("problem", ["full", "read-only"])
def test_a_disk_that_fills_or_locks_during_a_run_loses_nothing(tmp_path, problem):
    done = on_a_small_disk(
        1_000, tmp_path, [sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path), problem]
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    said = {
        "full": "No space left on device): make room",
        "read-only": "Read-only file system): name a folder",
    }
    assert len(told["problems"]) == 2
    assert all("cannot write" in text and said[problem] in text for text in told["problems"])
    assert told["same"]  # the checkpoint is the one from before
    assert told["names"] == ["kept", "run"]  # nothing is left of the attempts
    whole = subprocess.run(
        [sys.executable, "-c", WHOLE, str(tmp_path / "whole")], capture_output=True, text=True
    )
    assert whole.returncode == 0, whole.stderr
    assert told["log"] == Path(tmp_path, "whole", "log.csv").read_text()


WHOLE = """
import sys
sys.path[:0] = ["tests", "."]
from dataclasses import replace
from test_training import QUICK, TOKENIZER, made_model, made_stories
from helpers.training import train
train(made_model(), TOKENIZER, made_stories(), replace(QUICK, dropout=0.1, folder=sys.argv[1]))
"""


CACHES = """
import json, os, subprocess, sys
from pathlib import Path
folder, problem = Path(sys.argv[1]), sys.argv[2]
os.environ |= {"CACHE_DIR": str(folder / "vectors"), "HF_HUB_OFFLINE": "1"}
os.environ["HF_HOME"] = str(folder / "hub")
from helpers.stories import load_stories
from helpers.vectors import load_vectors, train_vectors

texts = [f"story {i} was told " + "again " * 50 for i in range(4_000)]
outside = Path(sys.argv[3])
(outside / "stories.jsonl").write_text("\\n".join(json.dumps({"text": text}) for text in texts))
(outside / "v.vec").write_text("1 300\\nw0" + " 0.5" * 300 + "\\n")
WORDS = [f"w{i}" for i in range(900)]
ATTEMPTS = {
    "trained vectors": lambda: (
        train_vectors([" ".join(WORDS)], dim=100, bucket=2_000, epochs=1).matrix
    ),
    "a few of many vectors": lambda: load_vectors(outside / "v.vec", words=WORDS)["w0"],
    "a table of stories": lambda: load_stories(outside / "stories.jsonl").train[0],
}
if problem == "read-only":
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
refusals = {}
for name, attempt in ATTEMPTS.items():
    for _ in range(2):  # what the first left is not taken for the whole by the second
        try:
            attempt()
        except OSError as error:
            refusals.setdefault(name, []).append(str(error))
if problem == "full":
    subprocess.run(["mount", "-o", "remount,size=100m", str(folder)], check=True)
else:
    subprocess.run(["mount", "-o", "remount,rw,size=100m", str(folder)], check=True)
for attempt in ATTEMPTS.values():
    attempt()
print(json.dumps(refusals))
"""


@pytest.mark.parametrize("problem", ["full", "read-only"])
def test_caches_on_a_disk_that_is_full_or_locked_hold_no_halves(tmp_path, problem):
    disk = tmp_path / "disk"
    disk.mkdir()
    done = on_a_small_disk(
        500, disk, [sys.executable, "-c", CACHES, str(disk), problem, str(tmp_path)]
    )
    assert done.returncode == 0, done.stderr
    refusals = json.loads(done.stdout.splitlines()[-1])
    assert [len(refusals[name]) for name in refusals] == [2, 2, 2]
    for name, folder in zip(refusals, ("vectors", "vectors", "hub"), strict=True):
        for text in refusals[name]:
            assert f"{disk / folder}" in text
            assert (
                "make room on the disk" in text
                if problem == "full"
                else "name a folder that can be written to" in text
            )


SAVE = """
import sys
sys.path[:0] = ["tests", "."]
import numpy as np
from test_training import TOKENIZER, made_model
from helpers import plots
from helpers.training import save_checkpoint
folder, mark, times = sys.argv[1:]
model = made_model(seed=int(mark))
figures = plots.FigureFolder("bundled")
for i in range(int(times)):
    save_checkpoint(folder + "/kept", model, TOKENIZER, {"by": mark})
    figures.save_numbers("numbers", {"by": mark, "numbers": list(range(5_000))})
    if i % 10 == 0:
        figure = plots.heatmap(np.eye(3) * int(mark), list("abc"))
        figures.save_figure(figure, "picture", alt=f"by {mark}")
"""


def test_two_processes_may_save_the_same_checkpoint_and_figures(tmp_path):
    environment = os.environ | {"FIGURES_DIR": str(tmp_path / "figures")}
    command = [sys.executable, "-c", SAVE, str(tmp_path)]
    writers = [
        subprocess.Popen(
            [*command, mark, str(cases(20, 300))],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for mark in "01"
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=200)
        assert writer.returncode == 0, errors
    model, _, metadata = load_checkpoint(tmp_path / "kept")
    expected = made_model(seed=int(metadata["by"]))
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True)
    )
    numbers = json.loads((tmp_path / "figures" / "numbers.json").read_text())
    assert numbers["numbers"] == list(range(5_000))
    ElementTree.parse(tmp_path / "figures" / "picture.svg")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "config.json",
        "model.safetensors",
        "numbers.json",
        "picture.svg",
        "tokenizer.json",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "kept"]


def test_a_checkpoint_can_be_read_while_another_process_replaces_it(tmp_path):
    models = [made_model(seed=0), made_model(seed=1)]
    save_checkpoint(tmp_path / "kept", models[0], TOKENIZER, {"by": "0"})
    environment = os.environ | {"FIGURES_DIR": str(tmp_path / "figures")}
    writer = subprocess.Popen(
        [sys.executable, "-c", SAVE, str(tmp_path), "1", str(cases(60, 600))], env=environment
    )
    seen = []
    while writer.poll() is None:
        model, _, metadata = load_checkpoint(tmp_path / "kept")
        seen.append(metadata["by"])
        assert torch.equal(model.output.weight, models[int(metadata["by"])].output.weight)
    assert writer.returncode == 0
    assert set(seen) == {"0", "1"}


def test_a_folder_that_may_only_be_read_is_named_before_anything_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(
        os, "access", lambda path, mode: False
    )  # who runs the tests may be root, and write everywhere
    with pytest.raises(
        PermissionError,
        match=rf"cannot write {tmp_path} \(.*\): name a folder that you may write to",
    ):
        save_checkpoint(tmp_path / "kept", made_model(), TOKENIZER)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_not_replaced_by_a_checkpoint(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"is no checkpoint \(thesis\.tex is there\)"):
        save_checkpoint(tmp_path, made_model(), TOKENIZER)
    with pytest.raises(FileExistsError, match="is no checkpoint"):
        save_checkpoint(tmp_path / "thesis.tex", made_model(), TOKENIZER)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_folder_that_is_removed_in_mid_run_is_said_and_the_checkpoint_elsewhere_is_whole(
    tmp_path,
):
    steps = []

    def remove(row, model):
        steps.append(row["step"])
        if row["step"] == 4:
            save_checkpoint(tmp_path / "kept", model, TOKENIZER)
            shutil.rmtree(tmp_path / "run")

    config = replace(QUICK, folder=str(tmp_path / "run"), checkpoint_every=1)
    with pytest.raises(
        FileNotFoundError, match=r"cannot write .*log\.csv \(.*\): its folder is gone"
    ):
        train(made_model(), TOKENIZER, made_stories(), config, on_validation=remove)
    assert steps == [1, 2, 4]
    load_checkpoint(tmp_path / "kept")
