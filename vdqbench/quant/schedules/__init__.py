"""How many bits at which step: each file is one value of `method.schedule.policy`."""
