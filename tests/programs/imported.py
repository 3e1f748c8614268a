"""Import a module, and print the names of all modules that this imported: MODULE."""

import importlib
import sys

importlib.import_module(sys.argv[1])
print(*sorted(sys.modules), sep="\n")
