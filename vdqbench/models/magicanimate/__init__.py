"""MagicAnimate, natively: its checkpoints as released, on top of diffusers' networks. A re-implementation, not the original's code."""
