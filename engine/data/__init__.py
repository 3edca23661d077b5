"""Datasets: containers, samples, how they are fed and divided."""
