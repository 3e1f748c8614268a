"""Load models of the Hub, and print the number of parameters of each: NAME ..."""

import sys

from helpers.checkpoints import load_checkpoint

for name in sys.argv[1:]:
    print(load_checkpoint(name)[0].num_parameters())
