"""Metrics: each is pure functions first, a thin streaming class second, and one YAML in conf/metric."""
