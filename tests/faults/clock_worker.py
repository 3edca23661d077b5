"""A worker whose clock shows what a test wants: all of the service is real but what time it is."""

import os
import sys
from datetime import timedelta
from pathlib import Path

from services import db
from worker.__main__ import main

# A file with the seconds that the clock is put on by.
CLOCK = "TEST_CLOCK"
_now = db.now


def _shown(session):
    return _now(session) + timedelta(seconds=float(Path(os.environ[CLOCK]).read_text()))


db.now = _shown

if __name__ == "__main__":
    sys.exit(main())
