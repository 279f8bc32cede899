"""The basis in which inputs and weights are quantized: each file is one key under `method.transform`."""
