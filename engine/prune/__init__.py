"""Smaller networks: fewer blocks, thinner layers, fewer weights."""
