"""Quantization as graph rewriting: which tensors (plan), in which integers (types), by which nodes (rewrite)."""
