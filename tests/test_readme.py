"""README and docs have the numbers that the notebooks recorded, and their paths exist."""

import json
import math
import re
import statistics
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from helpers.model import Decoder, ModelConfig

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
EVERYTHING = "\n".join([README, *DOCS.values()])


def recorded(corpus, notebook="04"):
    return json.loads((ROOT / "figures" / corpus / f"{notebook}.json").read_text(encoding="utf-8"))


def row(label):
    """The cells of the table row that begins with a label."""
    (line,) = [line for line in README.splitlines() if line.startswith(f"| {label} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize(
    ("label", "runs"),
    [
        ("the recipe asked for", "baseline recipe"),
        ("… from fastText vectors", "baseline recipe, fastText start"),
        ("ours, median of three seeds", "our recipe"),
    ],
)
def test_perplexities_are_the_recorded_ones(label, runs):
    ends = [round(recorded("tinystories")["steps"] * epoch / 3) for epoch in (1, 2, 3)]
    losses = [
        {row["step"]: row["validation_loss"] for row in run["rows"]}
        for run in recorded("tinystories", "protocol")["runs"][runs].values()
    ]
    parameters = f"{Decoder(ModelConfig()).num_parameters():,}"
    medians = [math.exp(statistics.median(by_step[end] for by_step in losses)) for end in ends]
    assert row(label) == [parameters, *(f"{perplexity:.2f}" for perplexity in medians)]
    assert f"{medians[-1]:.2f}" in README.split("```")[0], "the first screen names all three"


def test_the_fitted_schedule_is_the_recorded_one():
    runs = recorded("tinystories", "protocol")["runs"]
    last = runs["our recipe in 300 steps"]["0"]["rows"][-1]
    assert last["step"] == 300
    assert (
        f"schedule fitted to 300 steps it reaches {math.exp(last['validation_loss']):.2f}"
        in " ".join(README.split())
    )


@pytest.mark.parametrize(
    "label", ["greedy", "beam search, 5", "temperature 0.7", "temperature 1", "trigram model"]
)
def test_continuations_are_the_recorded_ones(label):
    found = recorded("tinystories", "05")["continuations"]
    assert row(label) == [f"{found[label]['perplexity']:.2f}", f"{found[label]['bleu']:.1f}"]
    assert row("the true continuation") == [
        f"{found['the true continuation']['perplexity']:.2f}",
        "",
    ]


SPEED = {"speed": None, "speed_AVX512_CORE": "AVX512_CORE", "speed_AVX2": "AVX2"}


def speed_table(runs):
    """The lines of the table: a ratio's medians in all runs, from the lowest to the highest."""

    def line(work, beside, find):
        cells = []
        for precision in ("fp32", "bf16"):
            medians = [find(run, precision)["median"] for run in runs]
            ends = (f"{end:.2f}" for end in (min(medians), max(medians)))
            cells.append(" to ".join(dict.fromkeys(ends)))
        return f"| {work} | {beside} | {' | '.join(cells)} |"

    def step(beside, name, kind="ratios"):
        return line("training step", beside, lambda run, p: run["training"][kind][f"{p}, {name}"])

    yield step(
        "the earlier deliverable's, rewritten (float32, dropout 0.1)",
        "against the earlier deliverable",
    )
    yield step("GPT-2 of our sizes in `transformers`, without dropout", "against GPT-2")
    alike = "the same, with our memory setting for both"
    yield step(alike, "against GPT-2", "ratios_with_our_memory")
    for number, row in enumerate(runs[0]["decoding"]["fp32"]):
        for beside, ratio in (
            ("`generate` of `transformers`", "ratio"),
            ("the plain loop", "ratio_plain"),
        ):
            if ratio in row:
                yield line(
                    f"decoding, {row['work']}",
                    beside,
                    lambda run, p, n=number, ratio=ratio: run["decoding"][p][n][ratio],
                )


def test_ratios_of_speed_are_the_recorded_ones():
    runs = [recorded("benchmark", name) for name in SPEED]
    assert [run["machine"]["onednn_limit"] for run in runs] == [*SPEED.values()]
    speed, *limited = runs
    for what in ("processor", "threads", "torch", "system"):
        assert {run["machine"][what] for run in limited} == {speed["machine"][what]}, (
            "the three runs are of different machines: `make benchmark RECORD=1`"
        )
    text = " ".join(DOCS["speed"].split())
    assert f"Measured on {speed['machine']['caption']}." in text
    table = "\n".join(speed_table(runs))
    assert table in DOCS["speed"], f"put this into docs/speed.md:\n{table}"
    assert f"takes {speed['to_the_goal']['ratio']:.0f} times less time" in text
    assert f"which takes about {speed['to_the_goal']['seconds_for_vectors']:.0f} s" in text
    ours, package = speed["vectors"]["ours"], speed["vectors"]["fasttext"]
    assert f"are read in {ours['seconds']:.1f} s and less than 0.1 GB" in text
    assert ours["gb"] < 0.1
    assert (
        f"the fasttext package takes {package['seconds']:.0f} s and {package['gb']:.0f} GB" in text
    )


def test_the_shares_of_possible_stories_are_the_recorded_ones():
    verdicts = recorded("bundled", "05")["verdicts"]
    greedy, hot = (verdicts[name]["possible"] for name in ("greedy", "temperature 1.3"))
    told = (
        f"continuations {100 * greedy:.0f} in 100 could be stories, of those at temperature 1.3 "
        f"one in {1 / hot:.0f}"
    )
    assert told in " ".join(README.split())


def test_the_distance_from_the_floor_is_the_recorded_one():
    numbers = recorded("bundled")
    gap = numbers["history"][-1]["validation_loss"] - numbers["landmarks"]["entropy floor"]
    told = f"the model ends {gap:.2f} nats per token above it"
    assert told in " ".join(README.split())


def test_whole_stories_are_the_recorded_ones():
    runs = recorded("tinystories", "whole")["runs"]["our recipe"]
    loss = statistics.median(run["validation"] for run in runs.values())
    text = " ".join(README.split())
    assert f"{loss:.2f} nats per token" in text
    assert f"{runs['0']['texts']['ended']:.0%} of its stories come to an end" in text
    assert f"{runs['0']['bits_per_character']:.2f} bits per character" in text
    (story,) = re.findall(r"^> .*(?:\n> .*)*", README, re.MULTILINE)
    assert " ".join(story.replace("\n> ", " ")[2:].split()) in runs["0"]["texts"]["quoted"]


def test_the_readme_is_short():
    assert len(README) <= 9_000


def test_the_memory_of_checkpointing_is_the_recorded_one():
    peaks = recorded("bundled", "06")["twelve_blocks"]
    assert "one gradient to the last bit, from a quarter of the memory" in README
    assert 0.2 <= peaks["12 segments"] / peaks["all kept"] <= 0.25


def test_the_parameter_table_adds_up():
    table = DOCS["parts"].partition("| part | parameters |")[2].partition("| **total** |")[0]
    parts = [
        int(number.replace(",", ""))
        for number in re.findall(r"\| ([\d,]+) \|$", table, re.MULTILINE)
    ]
    assert sum(parts) == Decoder(ModelConfig()).num_parameters()


def test_every_section_it_names_exists():
    named = re.findall(r"^\| \d\.\d [^|]*\| (\d\d), (\*[^|]+\*) \|", DOCS["parts"], re.MULTILINE)
    assert len(named) > 5
    for number, sections in named:
        (source,) = (ROOT / "notebooks" / "src").glob(f"{number}_*.py")
        headings = re.findall(r"^# ##+ (.+)$", source.read_text(encoding="utf-8"), re.MULTILINE)
        assert not set(re.findall(r"\*([^*]+)\*", sections)) - set(headings), number


def test_every_link_leads_to_a_file():
    for folder, text in [(ROOT, README), *((ROOT / "docs", text) for text in DOCS.values())]:
        links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
        assert not [link for link in links if not (folder / link).exists()]
    assert {f"docs/{name}.md" for name in DOCS} <= set(re.findall(r"\]\(([^)]+)\)", README))


def test_the_hub_is_given_up_when_the_readme_says():
    hub = (ROOT / "helpers" / "support" / "hub.py").read_text(encoding="utf-8")
    seconds = re.search(r"repo_info\(name, timeout=(\d+)\)", hub)[1]
    text = " ".join(DOCS["trouble"].split())
    assert f"given up after {seconds} seconds without a first answer" in text


@pytest.mark.slow
def test_every_name_and_option_of_the_helpers_exists():
    for module, names in re.findall(
        r"^from helpers\.([\w.]+) import (.+)$", EVERYTHING, re.MULTILINE
    ):
        found = vars(import_module(f"helpers.{module}"))
        assert {name.strip() for name in names.split(",")} <= found.keys()
    for path in re.findall(r"`((?:helpers|report)/[\w/]+\.\w+)", EVERYTHING):
        assert (ROOT / path).is_file(), path
    command = [sys.executable, "-m", "helpers.training", "--help"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    options = {
        option
        for line in re.findall(r"^.*-m helpers\.training (.*)$", EVERYTHING, re.MULTILINE)
        for option in re.findall(r"--[a-z-]+", line)
    }
    assert len(options) > 4
    assert options <= set(re.findall(r"--[a-z-]+", told))
