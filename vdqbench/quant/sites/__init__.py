"""Which layers are quantized: each file is one kind of exception, named by its key under `method.sites`."""
