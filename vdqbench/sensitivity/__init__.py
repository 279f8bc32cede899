"""What quantizing one group of layers alone costs, and bits per layer and range of steps from it: `vdqbench sensitivity`."""
