"""Tree ensembles, which simplify stores smaller."""
