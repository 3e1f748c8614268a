"""A run whose disk fills up, or becomes read-only, at step 8: FOLDER full|read-only.

The disk is mended afterwards, and the run resumed. Prints as JSON what was said and what was there.
"""

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from support import QUICK, TOKENIZER, made_model, made_stories

from helpers.checkpoints import load_checkpoint, save_checkpoint
from helpers.training import train

folder, problem = Path(sys.argv[1]), sys.argv[2]
run, kept, filler = folder / "run", folder / "kept", folder / "filler"
config = replace(QUICK, dropout=0.1, folder=str(run), save_every=1)
problems, steps = [], []


def mount(mode):
    subprocess.run(["mount", "-o", f"remount,{mode}", str(folder)], check=True)


def cause(row, model):
    steps.append(row["step"])
    if row["step"] != 8 or problems:
        return
    save_checkpoint(kept, model, TOKENIZER, row)
    if problem == "full":
        with open(filler, "wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1024))
    else:
        mount("ro")


def mend():
    filler.unlink() if problem == "full" else mount("rw")


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
pairs = zip(model.parameters(), again.parameters(), strict=True)
same = metadata == metadata_again and all((a == b).all().item() for a, b in pairs)
names = sorted(path.name for path in folder.iterdir() if path != filler)
mend()
train(made_model(seed=1), TOKENIZER, made_stories(), config, resume_from=run)
found = {"problems": problems, "same": same, "steps": steps, "names": names}
print(json.dumps(found | {"log": (run / "log.csv").read_text()}))
