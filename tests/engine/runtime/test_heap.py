"""What was let go of is the system's again."""

import subprocess
import sys

import pytest

# In a process of its own: here others may take what is let go of.
SCRIPT = """
import ctypes
from engine.runtime.heap import give_back

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

blocks = [ctypes.create_string_buffer(b"x" * 60000, 60000) for _ in range(1000)]
kept = blocks[::20]  # what lies above keeps the heap from shrinking by itself
del blocks
before = resident()
give_back(64 << 20)
assert resident() < before - (30 << 20), (before, resident())
"""


CIRCLES = """
from engine.runtime.heap import give_back

class Node:
    pass

node = Node()
node.itself, node.weights = node, bytearray(64 << 20)
del node
before = int(open("/proc/self/statm").read().split()[1]) * 4096
give_back(64 << 20)
assert int(open("/proc/self/statm").read().split()[1]) * 4096 < before - (60 << 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
@pytest.mark.parametrize("script", [SCRIPT, CIRCLES], ids=["pages", "circles"])
def test_what_nothing_lies_on_goes_back(script):
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
