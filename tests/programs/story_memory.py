"""How many megabytes it takes to read and tokenize a file of stories: FILE."""

import resource
import sys
from pathlib import Path

from helpers.stories import load_stories
from helpers.tokenizer import WordTokenizer

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stories = load_stories(Path(sys.argv[1]), validation=1)
tokenizer = WordTokenizer.train(stories.train)
for text in stories.train:
    assert len(tokenizer.encode_story(text, 64)) == 64
    assert max(tokenizer.encode(text)) < len(tokenizer)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) / 1024)
