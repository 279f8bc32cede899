"""VBench's leaderboard arithmetic: raw scores, normalised by published bounds, to quality, semantic and total score."""

from __future__ import annotations

from collections.abc import Mapping

from vdqbench.errors import ConfigError

BOUNDS: dict[str, tuple[float, float]] = {
    "subject_consistency": (0.1462, 1.0),
    "background_consistency": (0.2615, 1.0),
    "temporal_flickering": (0.6293, 1.0),
    "motion_smoothness": (0.706, 0.9975),
    "dynamic_degree": (0.0, 1.0),
    "aesthetic_quality": (0.0, 1.0),
    "imaging_quality": (0.0, 1.0),
    "object_class": (0.0, 1.0),
    "multiple_objects": (0.0, 1.0),
    "human_action": (0.0, 1.0),
    "color": (0.0, 1.0),
    "spatial_relationship": (0.0, 1.0),
    "scene": (0.0, 0.8222),
    "appearance_style": (0.0009, 0.2855),
    "temporal_style": (0.0, 0.364),
    "overall_consistency": (0.0, 0.364),
}
"""Least and greatest raw score (0-1) of each dimension; the first seven are quality, the others semantic."""
QUALITY, SEMANTIC = tuple(BOUNDS)[:7], tuple(BOUNDS)[7:]
WEIGHTS = {"dynamic_degree": 0.5}
"""Weights of the dimensions in their group that are not 1."""


def normalised(name: str, raw: float) -> float:
    """(raw - least) / (greatest - least), not clipped.

    Raises:
        ConfigError: not a dimension of VBench.
    """
    if name not in BOUNDS:
        raise ConfigError(f"{name} is not a dimension of VBench and has no bounds; it goes into no total")
    low, high = BOUNDS[name]
    return (raw - low) / (high - low)


def quality(raw: Mapping[str, float]) -> float:
    """Weighted mean of the seven normalised quality dimensions (weights sum to 6.5), from raw scores 0-1.

    Raises:
        ConfigError: a dimension is missing; VBench's script would count it as 0.
    """
    return _mean(raw, QUALITY, "quality")


def semantic(raw: Mapping[str, float]) -> float:
    """Mean of the nine normalised semantic dimensions, from raw scores 0-1.

    Raises:
        ConfigError: a dimension is missing; VBench's script would count it as 0.
    """
    return _mean(raw, SEMANTIC, "semantic")


def total(raw: Mapping[str, float]) -> float:
    """(4 quality + semantic) / 5 of all sixteen raw scores 0-1.

    Raises:
        ConfigError: a dimension is missing.
    """
    return (4 * quality(raw) + semantic(raw)) / 5


def _mean(raw: Mapping[str, float], names: tuple[str, ...], group: str) -> float:
    if missing := [name for name in names if name not in raw]:
        raise ConfigError(
            f"VBench's {group} score needs {', '.join(names)}, and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; "
            "measure all of them or report the dimensions alone"
        )
    weights = [WEIGHTS.get(name, 1.0) for name in names]
    return sum(weight * normalised(name, raw[name]) for name, weight in zip(names, weights, strict=True)) / sum(weights)
