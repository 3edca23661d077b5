"""A small decoder in int4 beside float32: loss per token, speed of reading and writing, and what onnxruntime-genai writes."""
