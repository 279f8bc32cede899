"""What quantization papers say about activations, weights and features of the timestep, measured on any model."""
