"""How much memory an embedding's matrix takes, in bytes, and its last number: VECTORS WORDS."""

import resource
import sys
from pathlib import Path

from helpers.tokenizer import WordTokenizer
from helpers.vectors import load_vectors

tokenizer = WordTokenizer(Path(sys.argv[2]).read_text(encoding="utf-8").split())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
matrix = load_vectors(sys.argv[1]).matrix(tokenizer)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
unit = 1 if sys.platform == "darwin" else 1024
print((after - before) * unit, float(matrix[-1, -1]))
