"""Files are there whole or not at all: with a full disk, a folder that may only be read, or two
writers. A file is known by its first bytes, and what is cached is built once.
"""

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import pickle
import shutil
import sqlite3
import tarfile
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import safetensors.torch
import torch
from datasets import Dataset
from support import QUICK, ROOT, TOKENIZER, cases, made_model, made_stories, on_a_small_disk, start

from helpers.checkpoints import load_checkpoint, save_checkpoint
from helpers.support.files import (
    cache_directory,
    cached,
    cannot_write,
    kind_of_file,
    make_folder,
    raise_if_full_or_locked,
    user_path,
    write_whole,
)
from helpers.training import train

pytestmark = pytest.mark.torture
ADVICE = r"make room, or name a folder that is there and that you may write to, then try again"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- whole files ----------------------------------------------------------------------------------


def test_what_is_written_is_there_and_nothing_else(tmp_path):
    write_whole(tmp_path / "a.txt", "é\n\ud800")
    assert contents(tmp_path) == {"a.txt": b"\xc3\xa9\n\xed\xa0\x80"}
    write_whole(str(tmp_path / "a.txt"), b"\0\r\n")  # bytes stay as they are
    assert contents(tmp_path) == {"a.txt": b"\0\r\n"}


def test_what_a_killed_process_left_is_removed_a_day_later(tmp_path):
    of_this_file = [f".a[1].txt.abcdef_{i}.partial" for i in range(2)]
    of_others = [".b.txt.abcdef_2.partial", ".a1.txt.abcdef_2.partial", ".a[1].txt.abcdef_3.txt"]
    of_others += [".a[1].txt.b.abcdef_4.partial", ".a[1].txt.partial"]
    for name in (*of_this_file, *of_others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("half")
    for name in (of_this_file[1], *of_others):
        os.utime(tmp_path / name, (time.time() - 90_000,) * 2)
    write_whole(tmp_path / "a[1].txt", "")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"a[1].txt", of_this_file[0], *of_others}


def test_a_file_may_be_read_by_whom_the_system_says(tmp_path):
    write_whole(tmp_path / "a.txt", "")
    (tmp_path / "b.txt").touch()
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_a_folder_that_is_gone_is_said(tmp_path):
    told = rf"cannot write .*a\.txt \(No such file or directory\): {ADVICE}"
    with pytest.raises(FileNotFoundError, match=told):
        write_whole(tmp_path / "gone" / "a.txt", "")


@pytest.mark.parametrize("owner", [os, Path])
def test_a_file_stays_as_it_was_if_another_cannot_take_its_place(tmp_path, monkeypatch, owner):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_whole(tmp_path / "a.txt", "before")
    with monkeypatch.context() as patch:
        patch.setattr(owner, "fsync" if owner is os else "replace", fail)
        told = rf"cannot write {tmp_path}/a\.txt \(No space left on device\): {ADVICE}"
        with pytest.raises(OSError, match=told) as caught:
            write_whole(tmp_path / "a.txt", "after")
    assert caught.value.errno == errno.ENOSPC
    assert contents(tmp_path) == {"a.txt": b"before"}


def test_readers_of_a_file_that_two_processes_write_see_it_whole(tmp_path):
    seen = []
    with ThreadPoolExecutor(2) as pool:
        write = partial(pool.submit, start, "write_whole", tmp_path)
        writers = [write(letter, cases(60, 1_000)) for letter in "xy"]
        while not all(writer.done() for writer in writers):
            if (tmp_path / "a.txt").exists():
                content = (tmp_path / "a.txt").read_text()
                assert len(content) == 300_000
                assert set(content) in ({"x"}, {"y"})
                seen.append(content[0])
    assert [writer.result().returncode for writer in writers] == [0, 0]
    assert set(seen) == {"x", "y"}
    assert contents(tmp_path).keys() == {"a.txt"}


@pytest.mark.slow
def test_two_processes_may_save_the_same_figures(tmp_path):
    environment = os.environ | {"FIGURES_DIR": str(tmp_path)}
    save = partial(start, "save_figures", environment=environment)
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(save, "01", [cases(20, 300)] * 2):
            assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "bundled" / "numbers.json").read_text())
    assert numbers["numbers"] == list(range(5_000))
    ElementTree.parse(tmp_path / "bundled" / "picture.svg")
    assert contents(tmp_path / "bundled").keys() == {"numbers.json", "picture.svg"}


# --- folders --------------------------------------------------------------------------------------


@contextmanager
def as_nobody():
    """Root may write everywhere: for a while, be somebody who may not."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def locked():
    """A folder that everybody may read."""
    if os.name == "nt":
        pytest.skip("Windows locks folders in another way")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        yield Path(folder)
        os.chmod(folder, 0o755)


def test_a_folder_is_made_with_its_parents_or_left_as_it_is(tmp_path):
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "c.txt").touch()
    make_folder(str(tmp_path / "a" / "b"))
    assert contents(tmp_path / "a" / "b") == {"c.txt": b""}


def test_a_folder_that_cannot_be_is_said(tmp_path, locked):
    (tmp_path / "a").touch()
    for folder in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(OSError, match=rf"cannot write {folder} \(.*\): {ADVICE}"):
            make_folder(folder)
    for folder in (locked, locked / "b"):
        told = rf"cannot write {folder} \(Permission denied\): {ADVICE}"
        with as_nobody(), pytest.raises(PermissionError, match=told):
            make_folder(folder)
    assert list(locked.iterdir()) == []


def test_only_a_librarys_own_disk_is_blamed_on_its_folder():
    full = OSError(errno.ENOSPC, "No space left on device")
    chained = RuntimeError("the library's")
    chained.__cause__ = full
    for error in (full, chained):
        with pytest.raises(OSError, match=r"cannot write cache \(No space left on device\)") as e:
            raise_if_full_or_locked(error, "cache")
        assert e.value.__cause__ is error
    for error in (ValueError("No space left"), ConnectionResetError(errno.ECONNRESET, "reset")):
        raise_if_full_or_locked(error, "cache")
    assert isinstance(cannot_write("a", OSError(errno.ENOENT, "gone")), FileNotFoundError)


# --- what a file is -------------------------------------------------------------------------------

QUOTED = "“Once,” said Mia.\n"
PACKED = {"gzip": partial(gzip.compress, mtime=0), "bzip2": bz2.compress, "xz": lzma.compress}


def made_by(write, *what):
    file = io.BytesIO()
    write(file, *what)
    return file.getvalue()


def tarred(file):
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("stories.txt"))


def zipped(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("stories.txt", QUOTED)


def database(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE stories (text TEXT)")
        connection.commit()
    return path.read_bytes()


KINDS = {
    **{f"compressed with {how}": [pack(QUOTED.encode())] for how, pack in PACKED.items()},
    "compressed with zstd": [b"\x28\xb5\x2f\xfd\x04\x00"],
    "a zip archive": [made_by(zipped), made_by(lambda file: zipfile.ZipFile(file, "w").close())],
    "a 7z archive": [b"7z\xbc\xaf\x27\x1c\x00\x04"],
    "a Parquet file": [
        made_by(lambda file: Dataset.from_dict({"text": ["Once."]}).to_parquet(file))
    ],
    "an Arrow file": [b"ARROW1\0\0\xff\xff\xff\xff", b"\xff\xff\xff\xff\x78\0\0\0"],
    "a NumPy file": [made_by(np.save, np.ones(3)), made_by(np.savez, np.ones(3))],
    "a pickle or a PyTorch file": [pickle.dumps(["Once."], protocol) for protocol in (2, 4, 5)],
    "a PDF": [b"%PDF-1.7\n%\xe2\xe3"],
    "a tar archive": [made_by(tarred)],
    "a document of an office program": [b"PK\x03\x04" + bytes(26) + b"[Content_Types].xml"],
    "a PyTorch file": [b"PK\x03\x04" + bytes(26) + b"archive/data.pkl"],
    "a picture": [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a"],
    "a safetensors file": [safetensors.torch.save({"a": torch.ones(2)})],
    "a pointer of Git LFS, without the file itself": [b"version https://git-lfs.github.com/spec"],
    "a document of a word processor": [b"{\\rtf1\\ansi", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"],
    "a web page": [b"<!DOCTYPE html>\n", b"\xef\xbb\xbf\n <HTML lang='en'>"],
    "text in UTF-16": [
        text.encode(code)
        for text in (QUOTED, "Once upon a time", "A b")
        for code in ("utf-16", "utf-16-le", "utf-16-be")
    ],
    "text in UTF-32": [
        text.encode(code)
        for text in (QUOTED, "Once upon a time", "A b")
        for code in ("utf-32", "utf-32-le", "utf-32-be")
    ],
    None: [
        *(b"", b"a", b"Once upon a time", QUOTED.encode(), QUOTED.encode("utf-8-sig")),
        *(
            b"<htmlish> tags",
            b"PARIS was",
            b"a\0b\0",
            b"PK, said Mia",
            b"%PD",
            bytes(100),
            b"\xe9t\xe9",
        ),
        np.array([793712314, 12, 100, 5], np.int32).tobytes(),  # fastText's .bin
        np.linspace(-1, 1, 100, dtype=np.float32).tobytes(),
    ],
}


@pytest.mark.parametrize(
    ("words", "content"), [(words, one) for words, contents in KINDS.items() for one in contents]
)
def test_a_file_is_known_by_its_first_bytes(tmp_path, words, content):
    (tmp_path / "a").write_bytes(content)
    assert kind_of_file(tmp_path / "a") == kind_of_file(str(tmp_path / "a")) == words


def test_a_database_is_known_and_a_missing_file_is_no_kind(tmp_path):
    database(tmp_path / "a.db")
    assert kind_of_file(tmp_path / "a.db") == "an SQLite database"
    with pytest.raises(FileNotFoundError):
        kind_of_file(tmp_path / "b")


def test_a_tilde_is_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("~/a.txt", Path("~/a.txt")):
        assert user_path(path) == tmp_path / "a.txt"
    for path in ("a~/b", "/a/~/b", "a"):
        assert user_path(path) == Path(path)
    monkeypatch.setenv("CACHE_DIR", "~/vectors")
    assert cache_directory() == tmp_path / "vectors"


# --- the cache ------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Build:
    """Makes a file of some text, and counts how often."""

    def __init__(self, text, name="a.txt"):
        self.text, self.name, self.times = text, name, 0

    def __call__(self, folder):
        self.times += 1
        (folder / "draft").write_text("not kept")
        (folder / self.name).write_text(self.text)
        return folder / self.name


def test_the_cache_is_in_the_repository_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("CACHE_DIR", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("CACHE_DIR")
    assert cache_directory() == ROOT / ".cache" / "vectors"


def test_what_is_cached_is_built_once_for_each_key(cache):
    one, other = Build("one"), Build("other", "b.npy")
    for _ in range(2):
        first, second = cached(b"1", one), cached(b"2", other)
        assert (first.read_text(), second.read_text()) == ("one", "other")
        assert (first.suffix, second.suffix) == (".txt", ".npy")
    assert (one.times, other.times) == (1, 1)
    assert contents(cache).keys() == {first.name, second.name}


@pytest.mark.parametrize("damage", [b"", b"on", b"onf", b"one\0"])
def test_a_damaged_file_is_built_again_with_a_note(cache, capsys, damage):
    build = Build("one")
    path = cached(b"1", build)
    assert capsys.readouterr().out == ""
    path.write_bytes(damage)
    assert cached(b"1", build) == path
    assert path.read_text() == "one"
    assert build.times == 2
    assert capsys.readouterr().out.startswith(f"{path} is damaged: ")
    assert contents(cache).keys() == {path.name}


def test_nothing_is_left_of_what_could_not_be_built(cache):
    def fail(folder):
        Build("half")(folder)
        raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        cached(b"1", fail)
    assert contents(cache) == {}
    assert cached(b"1", Build("one")).read_text() == "one"


def test_what_a_killed_process_left_in_the_cache_is_removed_a_day_later(cache):
    stem = cached(b"1", Build("one")).name.partition("-")[0]
    shutil.rmtree(cache)
    old, new = cache / f".{stem}.killed_1.partial", cache / f".{stem}.building.partial"
    another = cache / ".another.killed_1.partial"  # somebody else's
    for folder in (old, new, another):
        folder.mkdir(parents=True)
        (folder / "model.bin").write_text("half")
    (cache / "mine.partial").touch()
    for path in (old, another, cache / "mine.partial"):
        os.utime(path, (time.time() - 100_000,) * 2)
    path = cached(b"1", Build("one"))
    names = {path.name for path in cache.iterdir()}
    assert names == {new.name, another.name, "mine.partial", path.name}


# --- runs and caches on a disk of their own -------------------------------------------------------

REASONS = {"full": "No space left on device", "read-only": "Read-only file system"}


@pytest.mark.slow
@pytest.mark.parametrize("problem", REASONS)
def test_a_disk_that_fills_or_locks_during_a_run_loses_nothing(tmp_path, problem):
    disk = tmp_path / "disk"
    disk.mkdir()
    done = on_a_small_disk(1_000, disk, "run_on_a_small_disk", disk, problem)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told["problems"]) == 2
    for text in told["problems"]:
        assert f"cannot write {disk}" in text
        assert f"({REASONS[problem]}): {ADVICE}" in text
    assert told["same"]  # the checkpoint is the one from before
    assert told["names"] == ["kept.safetensors", "run"]  # nothing is left of the attempts
    config = replace(QUICK, dropout=0.1, folder=str(tmp_path / "whole"))
    train(made_model(), TOKENIZER, made_stories(), config)
    assert told["log"] == (tmp_path / "whole" / "log.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("problem", REASONS)
def test_caches_on_a_disk_that_is_full_or_locked_hold_no_halves(tmp_path, problem):
    disk = tmp_path / "disk"
    disk.mkdir()
    places = {"CACHE_DIR": str(disk / "vectors"), "HF_HOME": str(disk / "hub")}
    environment = os.environ | places | {"HF_HUB_OFFLINE": "1"}
    program = ("caches_on_a_small_disk", disk, problem, tmp_path)
    done = on_a_small_disk(500, disk, *program, environment=environment)
    assert done.returncode == 0, done.stderr
    refusals = json.loads(done.stdout.splitlines()[-1])
    assert [len(texts) for texts in refusals.values()] == [2, 2, 2]
    for texts, folder in zip(refusals.values(), ("vectors", "vectors", "hub"), strict=True):
        for text in texts:
            assert f"{disk / folder}" in text
            # fastText does not say why.
            assert f"({REASONS[problem]}): {ADVICE}" in text or (
                problem == "full" and "fastText could not write" in text and "make room" in text
            )


# --- checkpoints ----------------------------------------------------------------------------------


def test_a_checkpoint_in_a_folder_that_may_only_be_read_is_refused(locked):
    model = made_model()
    told = rf"cannot write {locked} \(Permission denied\): {ADVICE}"
    with as_nobody(), pytest.raises(PermissionError, match=told):
        save_checkpoint(locked / "kept", model, TOKENIZER)
    assert list(locked.iterdir()) == []


def test_a_checkpoint_replaces_no_folder_and_no_file_of_another_kind(tmp_path):
    (tmp_path / "thesis.safetensors").mkdir()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    for path in (tmp_path / "thesis", tmp_path / "thesis.safetensors"):
        with pytest.raises(OSError, match=rf"cannot write .*thesis\.safetensors \(.*\): {ADVICE}"):
            save_checkpoint(path, made_model(), TOKENIZER)
    save_checkpoint(tmp_path / "thesis" / "thesis.tex", made_model(), TOKENIZER)
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years of work"
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"thesis.tex", "thesis.tex.safetensors"}


def test_a_folder_removed_in_mid_run_is_said_and_the_checkpoint_elsewhere_is_whole(tmp_path):
    steps = []

    def remove(row, model):
        steps.append(row["step"])
        if row["step"] == 4:
            save_checkpoint(tmp_path / "kept", model, TOKENIZER)
            shutil.rmtree(tmp_path / "run")

    config = replace(QUICK, folder=str(tmp_path / "run"), save_every=1)
    told = rf"cannot write .*log\.csv \(No such file or directory\): {ADVICE}"
    with pytest.raises(FileNotFoundError, match=told):
        train(made_model(), TOKENIZER, made_stories(), config, on_validation=remove)
    assert steps == [1, 2, 4]
    load_checkpoint(tmp_path / "kept")
