"""Write a.txt again and again, full of one letter: FOLDER LETTER TIMES."""

import sys
from pathlib import Path

from helpers.support.files import write_whole

folder, letter, times = sys.argv[1:]
for _ in range(int(times)):
    write_whole(Path(folder, "a.txt"), letter * 300_000)
