"""Pruning beside onnxsim and Torch-Pruning."""
