"""Video diffusion models: adapters and native architectures."""
