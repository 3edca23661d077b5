"""A worker whose children search by waiting: all of the service is real, and only what takes processors is not."""

import sys
from importlib import import_module
from pathlib import Path

from worker.__main__ import main

# The package has a function of the module's name.
import_module("sandbox.start")._CHILD = ("-I", str(Path(__file__).with_name("study_child.py")))

if __name__ == "__main__":
    sys.exit(main())
