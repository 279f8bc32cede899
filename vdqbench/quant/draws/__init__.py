"""At which moments of calibration activations are looked at: each file is one value of `method.calibration.draw`."""
