"""Files that were cut, changed, or made by somebody else are refused in words, and nothing in them
is ever run.
"""

import gzip
import hashlib
import pickle
import random
import re
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import QUICK, ROOT, TOKENIZER, cases, made_model, made_stories

from helpers.checkpoints import (
    HUB_FILE,
    RUN_FILE,
    copies,
    load_checkpoint,
    read_run,
    save_checkpoint,
)
from helpers.tokenizer import WordTokenizer
from helpers.training import train
from helpers.vectors import load_vectors, train_vectors

pytestmark = pytest.mark.torture
CASES = cases(60, 1_000)
RUNS_CODE = {"exec", "compile", "os.system", "os.exec", "subprocess.Popen"}
RUNS_CODE |= {"pickle.find_class", "marshal.loads"}


def mutations(content: bytes):
    """Copies of a file: cut, with one bit changed, with bytes changed, put in or taken out, and
    with zeros at the end.
    """
    draw = random.Random(0)
    for number in range(CASES):
        at, length = draw.randrange(len(content)), draw.randint(1, 40)
        changed = bytearray(content)
        kind = number % 6
        if kind == 0:
            changed = changed[:at]
        elif kind == 1:
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            changed[at : at + length] = draw.randbytes(len(changed[at : at + length]))
        elif kind == 3:
            changed[at:at] = draw.randbytes(length)
        elif kind == 4:
            del changed[at : at + length]
        else:
            changed[at:] = bytes(len(changed) - at)
        if changed != content:
            yield bytes(changed)


class Listening:
    """While it listens, whatever would run code is an error. An audit hook cannot be taken away
    again: one serves all.
    """

    on = False

    @classmethod
    def hook(cls, event, arguments):
        if cls.on and event in RUNS_CODE:
            raise AssertionError(f"a damaged file made Python do {event} {arguments}")


sys.addaudithook(Listening.hook)


def read(path: Path, content: bytes, load, again: str):
    """What `load()` gives, or None if it refuses in words that name the file or its folder and
    say what to do.
    """
    path.write_bytes(content)
    Listening.on = True
    try:
        return load()
    except ValueError as error:
        refusal = str(error)
    finally:
        Listening.on = False
    assert path.name in refusal or path.parent.name in refusal
    assert re.search(again, refusal), refusal
    return None


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run's folder, its file to resume from, its checkpoint, and that as on the Hub."""
    folder = tmp_path_factory.mktemp("damage") / "run"
    model, metadata = made_model(), {"loss": 1.25}
    train(model, TOKENIZER, made_stories(), replace(QUICK, epochs=1, folder=str(folder)))
    for path in (folder / "kept", folder / "hub" / HUB_FILE):
        save_checkpoint(path, model, TOKENIZER, metadata)
    parts = {"model": asdict(model.config), "metadata": metadata, "tokenizer": TOKENIZER.state()}
    for name, text in copies(parts).items():
        (folder / "hub" / name).write_text(text)
    return folder


def same_tensors(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# A file, and what is read: the file itself, or the folder of the Hub in which it is.
CHECKPOINTS = {
    "kept.safetensors": "kept",
    **{f"hub/{name}": "hub" for name in (HUB_FILE, "config.json", "tokenizer.json")},
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_damaged_checkpoint_is_refused_or_read_as_it_was(saved, tmp_path, name):
    shutil.copytree(saved, tmp_path / "run")
    path, place = tmp_path / "run" / name, tmp_path / "run" / CHECKPOINTS[name]
    original, words, metadata = load_checkpoint(place)
    refused = 0
    for content in mutations(path.read_bytes()):
        got = read(path, content, lambda: load_checkpoint(place), "again|update the code")
        if got is None:
            refused += 1
            continue
        model, tokenizer, told = got
        assert same_tensors(model.state_dict(), original.state_dict())
        assert (model.config, told, tokenizer.words) == (original.config, metadata, words.words)
    assert refused > 0.9 * CASES


def test_a_damaged_file_to_resume_from_is_refused_or_read_as_it_was(saved, tmp_path):
    original, refused, path = read_run(saved), 0, tmp_path / RUN_FILE
    for content in mutations((saved / RUN_FILE).read_bytes()):
        got = read(path, content, lambda: read_run(tmp_path), "start the run again")
        if got is None:
            refused += 1
            continue
        assert same_tensors(got[0], original[0])
        assert got[1:] == original[1:]
    assert refused > 0.9 * CASES


def test_a_damaged_tokenizer_is_refused_or_read_as_it_was(tmp_path):
    tokenizer = WordTokenizer.train(["Mia sat. Mia ran.", "the dog, the cat – 'tis"] * 3)
    path, refused = tmp_path / "words.json", 0
    tokenizer.save(path)
    for content in mutations(path.read_bytes()):
        got = read(path, content, lambda: WordTokenizer.load(path), "again")
        if got is None:
            refused += 1
        else:
            assert (got.words, got.capitalized) == (tokenizer.words, tokenizer.capitalized)
    assert refused > 0.9 * CASES


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """The same small vectors as fastText's .bin, as .vec and as .vec.gz."""
    folder = tmp_path_factory.mktemp("vectors")
    words = [f"w{i}" for i in range(20)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_DIR", str(folder / "cache"))
        trained = train_vectors([" ".join(words)] * 3, dim=8, bucket=50, epochs=1)
    rows = [f"{word} {' '.join(f'{x:.4f}' for x in trained[word])}" for word in words]
    text = "\n".join([f"{len(words)} 8", *rows, ""]).encode()
    contents = {".bin": trained.path.read_bytes(), ".vec": text}
    return words, contents | {".vec.gz": gzip.compress(text, mtime=0)}


@pytest.mark.parametrize("kind", [".bin", ".vec", ".vec.gz"])
def test_damaged_vectors_are_refused_or_are_still_vectors(vectors, tmp_path, kind):
    """These formats have no checksum but that of .gz: a changed number in the others cannot be
    noticed, only that the file is a whole one of finite numbers.
    """
    words, contents = vectors
    tokenizer, path, refused = WordTokenizer(words), tmp_path / f"v{kind}", 0
    path.write_bytes(contents[kind])
    original = load_vectors(path).matrix(tokenizer)
    advice = "again|another copy|download|too old|for this language|Ask for more rows|quantising"
    for content in mutations(contents[kind]):

        def load():
            try:
                return load_vectors(path).matrix(tokenizer)
            except ValueError as error:  # of `matrix`, which knows no path
                raise ValueError(f"{path}: {error}") from error

        matrix = read(path, content, load, advice)
        if matrix is None:
            refused += 1
        elif kind == ".vec.gz":
            assert np.array_equal(matrix, original)
        else:
            assert matrix.shape[0] == len(tokenizer)
            assert np.isfinite(matrix).all()
    assert refused > {".bin": 0.2, ".vec": 0.5, ".vec.gz": 0.9}[kind] * CASES


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path(sys.argv[0] + ".exploded"),)


def test_a_pickle_is_never_opened(saved, tmp_path):
    """Under every name that is read: a pickle that would write a file, were it opened."""
    for name, place in CHECKPOINTS.items():
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(saved, tmp_path / "run")
        for content in (pickle.dumps(Bomb()), pickle.dumps({"weights": Bomb()}, protocol=0)):
            load = lambda place=place: load_checkpoint(tmp_path / "run" / place)
            assert read(tmp_path / "run" / name, content, load, "again") is None
    content = pickle.dumps(Bomb())
    assert read(tmp_path / RUN_FILE, content, lambda: read_run(tmp_path), "again") is None
    for path in (tmp_path / "v.bin", tmp_path / "v.vec", tmp_path / "v.vec.gz"):
        load = lambda path=path: load_vectors(path)
        assert read(path, content, load, "again|another copy") is None
    assert not Path(sys.argv[0] + ".exploded").exists()


def test_a_pickle_in_the_cache_of_vectors_is_never_opened(tmp_path, monkeypatch, capsys):
    """Neither under another hash than its own, nor under its own."""
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    source = tmp_path / "v.vec"
    source.write_text("1 2\na 1 2\n")
    load_vectors(source, words=["a"])
    (kept,) = (tmp_path / "cache").iterdir()
    np.save(tmp_path / "objects.npy", np.array([Bomb()], object), allow_pickle=True)
    content = (tmp_path / "objects.npy").read_bytes()
    kept.write_bytes(content)
    assert load_vectors(source, words=["a"])["a"].tolist() == [1, 2]
    assert "is damaged" in capsys.readouterr().out
    (kept,) = (tmp_path / "cache").iterdir()
    kept.unlink()
    forged = kept.with_name(f"{kept.name[:17]}{hashlib.sha256(content).hexdigest()[:32]}.f4")
    forged.write_bytes(content)
    load_vectors(source, words=["a"])  # as numbers, whatever they are
    assert not Path(sys.argv[0] + ".exploded").exists()


def test_no_code_of_ours_opens_pickles():
    """safetensors, JSON and plain numbers only."""
    names = (
        r"torch\.(load|save)\(|\b(import|from) +(pickle|joblib|dill|shelve)\b|allow_pickle|"
        r"_object(_list)?\b"
    )
    folders = ("helpers", "report", "notebooks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 15
    found = [(path, match[0]) for path in files for match in re.finditer(names, path.read_text())]
    assert found == []
