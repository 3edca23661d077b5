"""Training of a network's initializers in place: the graph that ships, interpreted in PyTorch. Importing it loads no torch."""
