"""Runs a command whose data folder is a disk of its own, and a small one: `small_disk.py FOLDER SIZE COMMAND...`.

The disk is in memory, and nobody but the command and its children has it: it goes with the last of them. Started by `unshare`, which
gives it a namespace of mounts, and the right to mount in it.
"""

import os
import subprocess
import sys

if __name__ == "__main__":
    folder, size, *command = sys.argv[1:]
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", folder], check=True)
    os.execvp(command[0], command)
