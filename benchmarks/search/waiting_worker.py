"""A worker whose children are `waiting_child`: all but the work of a candidate is as ever.

ONNXPRESS_...=... python -m benchmarks.search.waiting_worker --queues inspect,work
"""

import sys
from importlib import import_module
from pathlib import Path

from worker.__main__ import main

if __name__ == "__main__":
    # The package has a function of the module's name. The child is started apart from what lies in folders, so by its path.
    import_module("sandbox.start")._CHILD = ("-I", str(Path(__file__).with_name("waiting_child.py")))  # noqa: SLF001
    sys.exit(main())
