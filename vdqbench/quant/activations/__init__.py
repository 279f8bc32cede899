"""How the grid of an input is found: each file is one value of `method.activation.grid`."""
