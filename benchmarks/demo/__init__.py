"""The bundled network quantized by us and by onnxruntime.quantization, measured in one run."""
