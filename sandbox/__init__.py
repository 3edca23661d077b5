"""A child process for every piece of work on bytes that we did not make."""

from sandbox.start import Child, Limits, Order, Outcome, Verb, start

__all__ = ["Child", "Limits", "Order", "Outcome", "Verb", "start"]
