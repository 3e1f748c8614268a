"""Train for 200 steps and keep the model: run_to_resume.py FOLDER whole|interrupt|resume.

`interrupt` ends with exit code 9 at step 120; `resume` continues what is in the folder.
"""

import sys
from dataclasses import replace

from support import QUICK, TOKENIZER, made_model, made_stories

from helpers.checkpoints import save_checkpoint
from helpers.training import train

folder, mode = sys.argv[1:]
saved = {"folder": folder, "save_every": 100, "validate_every": 30}
config = replace(QUICK, epochs=25, dropout=0.1, weight_decay=0.1, **saved)


def stop(row, model):
    if mode == "interrupt" and row["step"] == 120:
        raise SystemExit(9)


model = made_model(seed=1 if mode == "resume" else 0)
begun = folder if mode == "resume" else None
train(model, TOKENIZER, made_stories(), config, on_validation=stop, resume_from=begun)
save_checkpoint(f"{folder}/model", model, TOKENIZER)
