"""Other tools, each in an environment of its own, driven by a small script that runs inside it."""
