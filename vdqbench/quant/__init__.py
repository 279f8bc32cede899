"""Post-training quantization: a method is a recipe of parts, found by name in the folders of this package."""
