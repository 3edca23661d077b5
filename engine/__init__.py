"""The compression core. This module is its front door: nothing else of the engine is public.

Importing it loads neither onnxruntime nor torch, so that a web process can validate job specs without ever being able to
open a session on a user's network.
"""
