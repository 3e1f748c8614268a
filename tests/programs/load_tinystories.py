"""Load stories of the Hub, print how many there are and each split's last: TRAIN VALIDATION."""

import sys

from helpers.stories import load_stories

train, validation = map(int, sys.argv[1:])
found = load_stories("tinystories", train=train, validation=validation)
print(len(found.train), len(found.validation))
print(found.train[-1], found.validation[-1], sep="\n")
