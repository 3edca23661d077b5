"""The differentiable twin of an ONNX network: its graph interpreted in PyTorch, with the initializers as parameters."""
