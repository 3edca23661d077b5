"""Quantization beside onnxruntime, NNCF and onnxsim."""
