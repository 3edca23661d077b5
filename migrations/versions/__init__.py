"""The revisions, each for both databases."""
