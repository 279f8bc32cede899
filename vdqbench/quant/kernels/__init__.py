"""How the quantized layers are executed: each file is one value of `kernel.name`."""
