"""Folders and files that only the service's own user reads."""

import os
from pathlib import Path

_FOR_OTHERS = 0o077


def keep_private() -> None:
    """Have everything that this process and those below it make from now on be for their own user only."""
    os.umask(_FOR_OTHERS)


def private_folder(folder: Path) -> Path:
    """Make a folder for this user only, and close one of this user's own that others can look into.

    One of somebody else's, such as a volume that an orchestrator mounts, stays as it is: what is made in it is private.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    seen = folder.stat()
    if seen.st_mode & _FOR_OTHERS and seen.st_uid == os.geteuid():
        folder.chmod(0o700)
    return folder
