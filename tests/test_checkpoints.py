"""Checkpoints and saved runs: one file each, read as they were written, or refused in words."""

import csv
import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import QUICK, TOKENIZER, WORDS, made_model, made_stories

from helpers.checkpoints import (
    COLUMNS,
    FORMAT,
    HUB_FILE,
    RUN_FILE,
    History,
    checkpoint_path,
    copies,
    load_checkpoint,
    read_run,
    resume_run,
    save_checkpoint,
    save_run,
    tensor_digest,
)
from helpers.tokenizer import WordTokenizer
from helpers.training import make_optimizer, train


def parts_of(model=None, tokenizer=TOKENIZER, metadata=None):
    sizes = asdict((model or made_model()).config)
    return {"model": sizes, "metadata": metadata or {}, "tokenizer": tokenizer.state()}


def forge(path, parts, weights=None, version=FORMAT):
    """A file whose SHA-256 fits, as a stranger may have written it."""
    weights = made_model().state_dict() if weights is None else weights
    text = json.dumps(parts) if isinstance(parts, dict) else parts
    digest = tensor_digest(weights, text)
    save_file(weights, path, {"version": version, "parts": text, "sha256": digest})


# --- A trained model ------------------------------------------------------------------------------


def test_checkpoint_round_trip(tmp_path):
    model = made_model()
    tokenizer = WordTokenizer(WORDS, capitalized=["w3"], keep_punctuation=False)
    path = save_checkpoint(tmp_path / "run", model, tokenizer, {"loss": 1.5})
    metadata = {"loss": 1.25, "names": ["Zoë", None]}
    assert save_checkpoint(path, model.train(), tokenizer, metadata) == path  # replaces the first
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]
    for name in (path, str(path), tmp_path / "run", str(tmp_path / "run")):
        again, words, told = load_checkpoint(name)
        assert told == metadata
        assert words.state() == tokenizer.state()
        assert again.config == model.config
        assert not again.training
        ids = torch.tensor([[1, 5, 6, 7]])
        assert torch.equal(again(ids), model.eval()(ids))


def test_a_checkpoint_without_metadata_has_none(tmp_path):
    assert load_checkpoint(save_checkpoint(tmp_path / "run", made_model(), TOKENIZER))[2] == {}


def test_half_size_checkpoint_keeps_the_weights_to_bf16(tmp_path):
    model = made_model()
    path = save_checkpoint(tmp_path / "run", model, TOKENIZER, dtype=torch.bfloat16)
    again, _, _ = load_checkpoint(path)
    stored = load_file(path)
    for name, tensor in model.state_dict().items():
        assert stored[name].dtype == torch.bfloat16
        assert again.state_dict()[name].dtype == torch.float32
        assert torch.equal(again.state_dict()[name], tensor.bfloat16().float()), name


def test_the_suffix_is_added_unless_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, file in (("kept", "kept.safetensors"), ("kept.v2", "kept.v2.safetensors")):
        assert checkpoint_path(tmp_path / name) == checkpoint_path(tmp_path / file)
        assert checkpoint_path(str(tmp_path / name)) == tmp_path / file
        assert checkpoint_path(f"~/{name}") == tmp_path / file


def test_a_file_goes_before_a_name_of_the_hub(tmp_path, monkeypatch):
    """models/kept.v2 reads like one, and its beginning is another file's name."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint("models/kept.v2", made_model(), TOKENIZER, {"is": "v2"})
    with pytest.raises(FileNotFoundError, match=r"kept\.safetensors is missing: there is no"):
        load_checkpoint(tmp_path / "models" / "kept")
    save_checkpoint("models/kept", made_model(), TOKENIZER, {"is": "kept"})
    assert load_checkpoint("models/kept.v2")[2] == {"is": "v2"}
    assert load_checkpoint("models/kept")[2] == {"is": "kept"}


def test_what_is_not_there_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    places = {"nothing": "nothing.safetensors", "empty": "empty/model.safetensors"}
    for name, file in places.items():
        message = rf"{file} is missing: there is no checkpoint; save or copy it again$"
        with pytest.raises(FileNotFoundError, match=message):
            load_checkpoint(tmp_path / name)


def test_what_is_no_checkpoint_is_named(tmp_path):
    foreign = {"a.safetensors": b"\x1f\x8b\x08 packed stories", "model.pt": b"\x80\x02}q\x00. ...."}
    told = {
        "a.safetensors": "it is compressed with gzip",
        "model.pt": "it is a pickle",
    }
    for name, content in foreign.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} cannot be read \(.*{told[name]}.*\): save"):
            load_checkpoint(tmp_path / name)
    save_run(tmp_path, made_model(), make_optimizer(made_model(), QUICK), History(), {})
    with pytest.raises(FileNotFoundError, match="no checkpoint but a saved run, to resume from"):
        load_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="None is no path"):
        load_checkpoint(None)


def cut(path):
    path.write_bytes(path.read_bytes()[:500])


def change_a_weight(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change_metadata(path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    parts = json.loads(metadata["parts"]) | {"metadata": {"loss": 0.1}}
    save_file(load_file(path), path, metadata | {"parts": json.dumps(parts)})


CHANGED = "its content no longer has the SHA-256 that it names"
FOREIGN = "it has format unknown, this code reads 3"
NEWER = "it has format 4, this code reads 3: update the code"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "header too small"),
        (lambda path: path.write_bytes(b"\x10" + bytes(20)), "invalid header length"),
        (cut, "invalid header|incomplete|not fully covered"),
        (change_a_weight, CHANGED),
        (change_metadata, CHANGED),
        # Of somebody else: with no metadata, and with those that Hugging Face's libraries write.
        (lambda path: save_file({"a": torch.zeros(1)}, path), FOREIGN),
        (lambda path: save_file({"a": torch.zeros(1)}, path, {"format": "pt"}), FOREIGN),
        (lambda path: forge(path, parts_of(), version="4"), NEWER),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_in_words(tmp_path, damage, message):
    path = save_checkpoint(tmp_path / "run", made_model(), TOKENIZER, {"loss": 1.5})
    damage(path)
    words = rf"(?s)run\.safetensors cannot be read \(.*({message}).*\): save or copy it again$"
    with pytest.raises(ValueError, match=words):
        load_checkpoint(path)


NO_CHECKPOINT = r"run\.safetensors cannot be read( as a checkpoint)? \(.*\): save or copy it again$"


@pytest.mark.parametrize("text", ["[]", "null", "1", "{}", "[" * 100_000, "{", ""])
def test_a_file_that_holds_something_else_is_refused(tmp_path, text):
    forge(tmp_path / "run.safetensors", text)
    with pytest.raises(ValueError, match=NO_CHECKPOINT):
        load_checkpoint(tmp_path / "run")


@pytest.mark.parametrize("part", [[], None, 1, "x"], ids=str)
@pytest.mark.parametrize("name", ["model", "tokenizer"])
def test_parts_that_are_something_else_are_refused(tmp_path, name, part):
    forge(tmp_path / "run.safetensors", parts_of() | {name: part})
    with pytest.raises(ValueError, match=NO_CHECKPOINT):
        load_checkpoint(tmp_path / "run")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vocab_size": 10**12}, "size mismatch for embedding.weight"),
        ({"embedding_dim": 10**12}, "size mismatch for embedding.weight"),
        ({"d_model": 8 * 10**9}, "overflow|too large|invalid"),
        ({"num_layers": 10**12}, "it promises more blocks than it holds"),
        ({"d_ff": 10**12}, r"size mismatch for blocks\.0\.feed_forward\.expand\.weight"),
        ({"num_layers": 3}, r"Missing key.*blocks\.2\.attention_norm\.gain"),
        ({"context_length": 10**6}, "context_length=1000000: must be at most 16384"),
        ({"d_ff": 32.0}, r"d_ff=32\.0: must be a whole number"),
        ({"dropout": "much"}, "dropout='much': must be a probability"),
        ({"d_models": 8}, "unexpected keyword argument 'd_models'"),
    ],
    ids=str,
)
def test_sizes_that_the_weights_do_not_have_are_refused_before_memory_is_asked_for(
    tmp_path, sizes, message
):
    """With a SHA-256 that fits. Some of these models would need terabytes, or for ever to build."""
    parts = parts_of()
    forge(tmp_path / "run.safetensors", parts | {"model": parts["model"] | sizes})
    message = rf"(?s)run\.safetensors cannot be read as a checkpoint \(.*({message})"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "run")


def without(weights):
    return {name: tensor for name, tensor in weights.items() if name != "norm.gain"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (without, r'Missing key\(s\) in state_dict: "norm\.gain"'),
        (lambda weights: weights | {"more": torch.zeros(1)}, r'Unexpected key.* "more"'),
        (lambda weights: weights | {"norm.gain": torch.zeros(3)}, r"size mismatch for norm\.gain"),
    ],
)
def test_weights_must_be_those_of_the_model_by_name_and_shape(tmp_path, changed, message):
    forge(tmp_path / "run.safetensors", parts_of(), changed(made_model().state_dict()))
    with pytest.raises(ValueError, match=rf"(?s)cannot be read as a checkpoint \(.*{message}"):
        load_checkpoint(tmp_path / "run")


def test_a_tokenizer_of_another_model_is_neither_saved_nor_loaded_with_it(tmp_path):
    other = WordTokenizer([f"w{i}" for i in range(100)])
    message = "vocabulary of 104 is larger than the model's table of 40"
    with pytest.raises(ValueError, match=message):
        save_checkpoint(tmp_path / "run", made_model(), other)
    assert list(tmp_path.iterdir()) == []
    forge(tmp_path / "run.safetensors", parts_of(tokenizer=other))
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "run")


# --- A folder as it is on the Hub -----------------------------------------------------------------


@pytest.fixture
def published(tmp_path):
    """The checkpoint under the Hub's name, and beside it what it holds, for people to read."""
    model, folder = made_model(), tmp_path / "published"
    save_checkpoint(folder / HUB_FILE, model, TOKENIZER, {"loss": 1.5})
    for name, text in copies(parts_of(model, metadata={"loss": 1.5})).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_a_folder_of_the_hub_is_read(published):
    names = sorted(path.name for path in published.iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]
    (published / "README.md").write_text("A model card.")
    for place in (published, str(published), published / HUB_FILE):
        model, tokenizer, metadata = load_checkpoint(place)
        assert metadata == {"loss": 1.5}
        assert tokenizer.words == WORDS
        assert torch.equal(model.output.weight, made_model().output.weight)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_file_of_the_hub_that_differs_from_the_checkpoint_is_refused(published, name):
    path = published / name
    content = json.loads(path.read_text())
    part, changed = ("metadata", {"loss": 0.1}) if name == "config.json" else ("words", WORDS[1:])
    path.write_text(json.dumps(content | {part: changed}, indent=1, sort_keys=True))
    message = rf"\({name} is not the one that was published with it\): save or copy it again$"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(published)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load_checkpoint(published)
    load_checkpoint(published / "model")  # the file alone is whole


def test_another_checkpoint_under_the_hubs_name_is_refused(published):
    save_checkpoint(published / HUB_FILE, made_model(), TOKENIZER, {"loss": 1.25})
    with pytest.raises(ValueError, match=r"\(config\.json is not the one that was published"):
        load_checkpoint(published)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_folder_of_the_hub_that_lacks_a_file_is_refused(published, name):
    (published / name).unlink()
    message = rf"{name}.* save or copy it again$"
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_checkpoint(published)


# --- A saved run ----------------------------------------------------------------------------------


def test_a_history_counts_and_records():
    history = History()
    for total, tokens in ((6.0, 2), (1.0, 5)):
        history.add(total, tokens)
    row = history.record(0.1, 2.5, 3.25)
    assert list(row) == list(COLUMNS)
    assert row == dict(zip(COLUMNS, (2, 7, 0.1, 1.0, 2.5, 3.25), strict=True))
    history.add(8.0, 4)
    assert history.record(0.2, 2.25, 4.5)["train_loss"] == 2.0  # the mean since the row before
    assert history.column("step") == [2, 3]
    assert history.column("tokens") == [7, 11]


def test_a_history_is_written_as_two_tables(tmp_path):
    history = History()
    history.add(1.0, 3)
    history.record(0.1, 1 / 3, 2.5)
    history.save(tmp_path)
    with open(tmp_path / "log.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert list(row) == list(COLUMNS[:-1])  # no seconds: a resumed run repeats it to the bit
    assert float(row["train_loss"]) == float(row["validation_loss"]) == 1 / 3
    assert (tmp_path / "timing.csv").read_text() == "step,tokens,seconds\n1,3,2.5\n"


def test_a_run_comes_back_as_it_was_saved(tmp_path):
    """The history with every number to its last digit, the weights, the optimizer's moments."""
    model = made_model()
    optimizer = make_optimizer(model, QUICK)
    total, count = model(torch.tensor([[1, 5]]), targets=torch.tensor([[5, 6]]))
    total.backward()
    optimizer.step()
    history = History()
    for number in range(1, 4):
        history.add(total.item() / 3, number * count.item())
        history.record(0.1 / number, 1 / (3 * number), number / 7)
    history.add(0.1 + 0.2, 5)  # since the last row
    history.seconds = 1 / 9
    identity = {"seed": 0, "betas": [0.9, 0.95], "name": "Zoë"}
    save_run(tmp_path, model, optimizer, history, identity)
    assert [path.name for path in tmp_path.iterdir()] == [RUN_FILE]

    assert read_run(tmp_path)[1:] == (history, identity)
    other = made_model(seed=1)
    another = make_optimizer(other, QUICK)
    assert resume_run(tmp_path, other, another, identity) == history
    assert all(
        torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True)
    )
    moments, again = (o.state_dict()["state"] for o in (optimizer, another))
    assert moments.keys() == again.keys() == set(range(len(list(model.parameters()))))
    for index, parts in moments.items():
        assert parts.keys() == again[index].keys()
        assert all(torch.equal(parts[name], again[index][name]) for name in parts)


def test_a_run_is_restored_to_its_like_only(tmp_path):
    model = made_model()
    save_run(tmp_path, model, make_optimizer(model, QUICK), History(), {"seed": 0, "epochs": 2})
    other = made_model(seed=1)
    before = [parameter.clone() for parameter in other.parameters()]
    optimizer = make_optimizer(other, QUICK)
    message = (
        r" holds another run \(seed: 0 there, 1 here; new: None there, x "
        r"here\): resume with the config it was started with$"
    )
    with pytest.raises(ValueError, match=message):
        resume_run(tmp_path, other, optimizer, {"seed": 1, "epochs": 2, "new": "x"})
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), before, strict=True))
    assert optimizer.state_dict()["state"] == {}


@pytest.fixture
def run_folder(tmp_path):
    config = replace(QUICK, epochs=1, folder=str(tmp_path))
    train(made_model(), TOKENIZER, made_stories(), config)
    return tmp_path


def test_a_run_of_train_is_read_with_its_history(run_folder):
    tensors, history, _ = read_run(run_folder)
    assert (history.step, history.column("step")) == (8, [1, 2, 4, 5, 8])
    assert history.rows[-1]["tokens"] == history.tokens
    assert history.precision == "fp32"
    kinds = {name.partition(".")[0] for name in tensors}
    assert kinds == {"model", "optimizer"}


@pytest.mark.parametrize("damage", [cut, change_a_weight], ids=lambda damage: damage.__name__)
def test_a_damaged_run_is_refused_in_words(run_folder, damage):
    damage(run_folder / RUN_FILE)
    message = r"resume\.safetensors cannot be read \(.*\): delete it and start the run again$"
    with pytest.raises(ValueError, match=message):
        read_run(run_folder)


def test_a_run_of_another_format_or_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run to resume in .*; start a new one"):
        read_run(tmp_path)
    path = tmp_path / RUN_FILE
    forge(path, {"history": asdict(History()), "identity": {}}, version="2")
    message = "has format 2, this code reads 3: update the code.*: delete it and start the run"
    with pytest.raises(ValueError, match=message):
        read_run(tmp_path)
    save_checkpoint(path, made_model(), TOKENIZER)  # whole, and no run
    with pytest.raises(ValueError, match=r"holds no saved run \('history'\): delete it and start"):
        read_run(tmp_path)


def test_a_loaded_model_knows_its_tokenizer(tmp_path):
    save_checkpoint(tmp_path / "run", made_model(), TOKENIZER)
    model, tokenizer, _ = load_checkpoint(tmp_path / "run")
    assert model.tokenizer_digest == tokenizer.digest == TOKENIZER.digest
    assert "tokenizer_digest" not in model.state_dict()
    with pytest.raises(ValueError, match="the tokenizer is another model's"):
        save_checkpoint(tmp_path / "other", model, WordTokenizer(TOKENIZER.words[::-1]))
    assert not (tmp_path / "other.safetensors").exists()


@pytest.mark.slow
def test_a_compiled_model_is_saved_as_the_model_that_it_wraps(tmp_path):
    model = made_model()
    save_checkpoint(tmp_path / "run", torch.compile(model), TOKENIZER)
    again = load_checkpoint(tmp_path / "run")[0].state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_a_file_is_not_asked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_checkpoint("nowhere/run.safetensors")
    save_checkpoint("run", made_model(), TOKENIZER)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_checkpoint(".")  # a folder, but none of the Hub's
