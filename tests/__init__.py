"""Tests of everything. A package, so that rooms in it may be."""
