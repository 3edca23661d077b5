"""Tests of the whole. A package: what its tests share ends with the last of them, and not with the last of all."""
