"""Distillation and quantization-aware training beside pruning and fine-tuning in PyTorch, and networks of integers only."""
