"""A goal instead of a recipe, beside recipes by hand, quantizers, and other searches, held to bars."""
