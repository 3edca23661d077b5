"""Makes onnxruntime run the kernels that it takes on a processor with AVX2 and nothing newer."""
