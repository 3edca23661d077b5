"""A job of any kind: its frame, and what each kind does in it."""
