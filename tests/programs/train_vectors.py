"""Train vectors, and print the name of their file: JSON of the texts and the settings."""

import json
import sys

from helpers.vectors import train_vectors

texts, settings = json.loads(sys.argv[1])
print(train_vectors(texts, **settings).path.name)
