"""Let fastText write small models of each kind into a folder: FOLDER.

The folder holds text.txt, labels.txt, and models.json: the settings of each unsupervised model.
"""

import json
import os
import sys

import fasttext

os.chdir(sys.argv[1])
with open("models.json") as file:
    models = json.load(file)
for name, settings in models.items():
    minn, maxn = settings.pop("lengths")
    settings |= {"minn": minn, "maxn": maxn, "minCount": 1, "thread": 1, "epoch": 2, "verbose": 0}
    fasttext.train_unsupervised("text.txt", **settings).save_model(f"{name}.bin")

supervised = {"input": "labels.txt", "thread": 1, "verbose": 0, "dim": 8, "minn": 2, "maxn": 4}
supervised |= {"epoch": 1, "loss": "hs", "bucket": 400}
model = fasttext.train_supervised(**supervised)
model.save_model("supervised.bin")
model.quantize()
model.save_model("quantised.bin")
model = fasttext.train_supervised(**supervised)
model.quantize(cutoff=300)
model.save_model("pruned.bin")
