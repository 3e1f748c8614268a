"""Fill each cache twice while its disk is too small or read-only, then once more when it is not.

FOLDER full|read-only OUTSIDE: the disk, what is wrong with it, and a folder elsewhere. $CACHE_DIR
and $HF_HOME are on the disk. Prints as JSON what was said.
"""

import json
import subprocess
import sys
from pathlib import Path

from helpers.stories import load_stories
from helpers.vectors import load_vectors, train_vectors

folder, problem, outside = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
texts = [f"story {i} was told " + "again " * 50 for i in range(4_000)]
(outside / "stories.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
(outside / "v.vec").write_text("1 300\nw0" + " 0.5" * 300 + "\n")
WORDS = [f"w{i}" for i in range(900)]


def trained_vectors():
    train_vectors([" ".join(WORDS)], dim=100, bucket=2_000, epochs=1).lookup(WORDS)


def a_few_of_many_vectors():
    assert load_vectors(outside / "v.vec", words=WORDS)["w0"].tolist() == [0.5] * 300


def a_table_of_stories():
    assert load_stories(outside / "stories.jsonl").train[0] == texts[0].strip()


def remount(options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


ATTEMPTS = (trained_vectors, a_few_of_many_vectors, a_table_of_stories)
if problem == "read-only":
    remount("ro")
refusals = {attempt.__name__: [] for attempt in ATTEMPTS}
for attempt in ATTEMPTS:
    for _ in range(2):  # what the first left is not taken for the whole by the second
        try:
            attempt()
        except OSError as error:
            refusals[attempt.__name__].append(str(error))
remount("rw,size=100m")
for attempt in ATTEMPTS:
    attempt()
print(json.dumps(refusals))
