"""Which steps are taken over from one before: each file is one key under `method.reuse`."""
