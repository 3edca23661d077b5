"""onnxruntime: sessions, the table of providers, discovery, tracing. Nothing else imports it."""
