"""How the grid of a weight is found: each file is one value of `method.weight.grid`."""
