"""Download a model of the Hub, and print the folder that it is in: OWNER/NAME."""

import sys

from helpers.support.hub import download_model

print(download_model(sys.argv[1]))
