"""Measurements of onnxpress beside its peers; README.md says how to repeat each of them."""
