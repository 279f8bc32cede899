"""From the frames of numbers to a value, a verdict and a note for each phenomenon."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from vdqbench.inspect import activations, changes, phenomena, temporal
from vdqbench.inspect.measure import ATTENTION, Measured
from vdqbench.inspect.phenomena import Finding

MOST_ROLES = 6
"""That a note lists."""
NO_FEATURES = "this model has no features of the timestep: no layer has the role time_proj, modulation or time_emb.out"


def findings(measured: Measured) -> list[Finding]:
    """One for each of `phenomena.ALL`, in their order."""
    found = [
        *of_ranges(measured.ratios, measured.channels),
        of_coverage(measured.coverage),
        *of_features(measured.spread, measured.scores),
        *of_weights(measured.weights),
        *of_outputs(measured.changes),
    ]
    by_name = {one.phenomenon.name: one for one in found}
    return [by_name[one.name] for one in phenomena.ALL]


def of_ranges(ratios: pd.DataFrame, channels: pd.DataFrame) -> Iterator[Finding]:
    """How ranges of inputs differ by step, and by channel."""
    for phenomenon, frame in ((phenomena.STEPS, ratios), (phenomena.CHANNELS, channels)):
        known = frame.dropna(subset="ratio")
        if known.empty:
            yield Finding(phenomenon, None, "all inputs are 0 at some step, or in most channels")
            continue
        above = int((known["ratio"] >= phenomenon.threshold).sum())
        roles = known.groupby("role", sort=False)["ratio"].median().sort_values(ascending=False)
        beyond = [f"{role} {ratio:.3g}" for role, ratio in roles.items() if ratio >= phenomenon.threshold]
        more = f" and {len(beyond) - MOST_ROLES} more roles" if len(beyond) > MOST_ROLES else ""
        note = (
            f"{above} of {len(known)} inputs; medians of roles: {', '.join(beyond[:MOST_ROLES])}{more}"
            if beyond
            else f"{above} of {len(known)} inputs"
        )
        yield Finding(phenomenon, float(known["ratio"].median()), note)


def of_coverage(coverage: pd.DataFrame) -> Finding:
    """Of the inputs of temporal attention; of another attention where there is none, and of all inputs without any."""
    kind = next((kind for kind in ATTENTION if coverage["role"].str.contains(rf"(?:^|\+ ){kind}").any()), None)
    frame = coverage[coverage["role"].str.contains(rf"(?:^|\+ ){kind}")] if kind else coverage
    levels = ", ".join(f"{frame[f'levels{bits}'].median():.0f} of {2**bits} levels at {bits} bits" for bits in activations.BITS)
    place = "" if kind == ATTENTION[0] else f"no temporal attention, so of {kind or 'all inputs'}: "
    if frame["p50"].isna().all():
        return Finding(phenomena.COVERAGE, None, f"{place}no input ever changes")
    return Finding(phenomena.COVERAGE, float(frame["p50"].median()), f"{place}{levels}; all inputs: {coverage['p50'].median():.2f}")


def of_features(spread: pd.DataFrame, scores: pd.DataFrame) -> Iterator[Finding]:
    """Of the first features of the timestep: those behind the activation function, where they are read."""
    if spread.empty:
        yield from (Finding(one, None, NO_FEATURES) for one in (phenomena.OUTLIERS, phenomena.COLLAPSE, phenomena.CONFUSION))
        return
    first = spread.iloc[0]
    mixed = f", {first['rows']} rows at {first['steps']} steps: mixed with the prompt" if first["rows"] > first["steps"] else ""
    others = "".join(f"; {row.layer} ({row.site}): {row.imbalance:.3g}" for row in spread.iloc[1:].itertuples())
    yield Finding(phenomena.OUTLIERS, float(first["imbalance"]), f"{first['layer']} ({first['site']}){mixed}{others}")
    crowd = f"middle 90 % on {first['middle10']} of 1024 levels; 8 bits: {first['fullest8']:.3f}, on {first['middle8']} of 256"
    yield Finding(phenomena.COLLAPSE, float(first["fullest10"]), crowd)
    own = scores[(scores["layer"] == first["layer"]) & (scores["site"] == first["site"])]
    known = {name: float(own.loc[(own["quantizer"] == name) & (own["bits"] == 8), "td_score"].iloc[0]) for name in temporal.GRIDS}
    before = float(own["td_score"].iloc[0])
    lost = (known[temporal.UNIFORM] - before) / (1 - before) if before < 1 else None
    few = float(own.loc[(own["quantizer"] == temporal.UNIFORM) & (own["bits"] == 4), "td_score"].iloc[0])
    eight = "; ".join(f"{name}: {score:.3f}" for name, score in known.items())
    note = f"TDScore {before:.3f} in floating point; 8 bits: {eight}; 4 bits: {temporal.UNIFORM}: {few:.3f}"
    yield Finding(phenomena.CONFUSION, lost, note)


def of_weights(weights: pd.DataFrame) -> Iterator[Finding]:
    """How Gaussian weights are, and what a tighter range saves."""
    near, least = int((weights["ks"] <= phenomena.GAUSSIAN.threshold).sum()), weights.loc[weights["ks"].idxmax()]
    note = f"{near} of {len(weights)} layers; least Gaussian: {least['layer']} ({least['ks']:.3f})"
    yield Finding(phenomena.GAUSSIAN, float(weights["ks"].median()), note)
    far = 100 * (weights["beyond3"] * weights["elements"]).sum() / weights["elements"].sum()
    peaks = f"{weights['peak'].median():.1f} deviations where {weights['expected'].median():.1f} are expected"
    note = f"{peaks}; {far:.2f} % of the weights beyond three (Gaussian: 0.27 %)"
    yield Finding(phenomena.TAILS, float((weights["peak"] / weights["expected"]).median()), note)
    gain = weights["gain"]
    note = f"{gain.min():.2f} to {gain.max():.2f}; output channels of {weights['row'].median():.0f} weights, median"
    yield Finding(phenomena.CLIPPING, float(gain.median()), note)


def of_outputs(frame: pd.DataFrame) -> Iterator[Finding]:
    """How outputs change along the trajectories."""
    means = frame.groupby("step")["change"].mean().dropna()
    big = [int(step) for step in means.index[means >= changes.DELTA]]
    note = f"{means.min():.3f} (step {means.idxmin()}) to {means.max():.3f} (step {means.idxmax()})"
    note += f"; at least {changes.DELTA:g} at steps {spans(big)}"
    yield Finding(phenomena.UNEVEN, float(means.max() / means.min()) if means.min() > 0 else None, note)
    low = frame.groupby("step")["low"].mean()
    often = spans([int(step) for step in low.index[low >= 0.5]])
    note = f"of {len(low)} steps; {8 - 4 * low.mean():.2f} bits on average between 4 and 8; few for most prompts at steps {often}"
    yield Finding(phenomena.REDUNDANT, float(low.mean()), note)


def spans(numbers: list[int]) -> str:
    """Whole numbers in ascending order, neighbours drawn together.

    >>> spans([0, 1, 2, 5, 7, 8])
    '0-2, 5, 7-8'
    """
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in found) or "none"
