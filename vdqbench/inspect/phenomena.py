"""What the papers say, how it is measured, and from which number on it is shown.

The thresholds are declared here, with their reasons, and verdicts follow from them alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ASQ, QVD, DVD = "ASQ/TSQ", "QVD", "DVD-Quant"
SOURCES = {ASQ: "arXiv 2502.15077", QVD: "arXiv 2407.11585", DVD: "arXiv 2505.18663"}


@dataclass(frozen=True)
class Phenomenon:
    """Something that a paper argues from.

    Attributes:
        name: in results.
        paper, place: who says so, and where.
        says: the statement, in our words.
        measure: what is measured.
        threshold: from which value on it is shown; up to which one if `at_most`.
        reason: why this one.
    """

    name: str
    title: str
    paper: str
    place: str
    says: str
    measure: str
    threshold: float
    reason: str
    at_most: bool = False

    @property
    def bound(self) -> str:
        """The threshold in writing."""
        return f"{'≤' if self.at_most else '≥'} {self.threshold:g}"


@dataclass(frozen=True)
class Finding:
    """A phenomenon on a model.

    Attributes:
        value: None where the model has nothing to measure.
        note: what else is to be said, or why there is no value.
    """

    phenomenon: Phenomenon
    value: float | None
    note: str

    @property
    def verdict(self) -> str:
        """`shown`, `not shown`, or `absent` without a value."""
        if self.value is None or math.isnan(self.value):
            return "absent"
        least = self.phenomenon.threshold
        return "shown" if (self.value <= least if self.phenomenon.at_most else self.value >= least) else "not shown"


STEPS = Phenomenon(
    "steps",
    "ranges change with the step",
    f"{ASQ}, {DVD}",
    "Sec. 3.2 and Fig. 3; Sec. 1 (2)",
    "The distribution of activations differs much between the steps, so that one static range for all of them does not fit.",
    "largest over smallest step's max |x|, median over the inputs",
    2.0,
    "with one range for all steps, the quietest step of the typical input loses one bit",
)
CHANNELS = Phenomenon(
    "channels",
    "channels differ in size",
    ASQ,
    "Sec. 3.1 and Fig. 3",
    "Channels of an activation have such different magnitudes that they must be smoothed before the tensor gets one scale.",
    "largest over median channel's max |x|, median over the inputs",
    4.0,
    "with one scale for all channels, the median channel of the typical input loses two bits",
)
COVERAGE = Phenomenon(
    "coverage",
    "channels cover few levels",
    QVD,
    "Sec. 4.2, Figs. 1(b) and 6",
    "Channels around temporal attention have narrow ranges that hardly overlap, so that each covers a small part of the levels.",
    "median channel's range over the common one, median over the inputs of temporal attention",
    0.5,
    "the typical channel loses one bit or more",
    at_most=True,
)
OUTLIERS = Phenomenon(
    "outliers",
    "features of the timestep are skewed",
    QVD,
    "Sec. 4.1 and Fig. 4(a)",
    "Most values of the features of the timestep lie near zero, and outliers are larger by several orders of magnitude.",
    "largest over median |T|",
    100.0,
    "two orders of magnitude, the fewest that are several",
)
COLLAPSE = Phenomenon(
    "collapse",
    "a uniform grid merges features of the timestep",
    QVD,
    "Sec. 4.1 and Fig. 4(b)",
    "On a uniform grid of 10 bits most values of the features fall on a single level (in the paper's example the middle 90 %).",
    "share of the values on the fullest level of 10-bit min-max",
    0.5,
    "most values",
)
CONFUSION = Phenomenon(
    "confusion",
    "a uniform grid makes steps alike",
    QVD,
    "Sec. 4.1, Figs. 3 and 5",
    "Uniformly quantized features of different steps can hardly be told apart: their TDScore is near 1.",
    "(TDScore of 8-bit min-max - that of floating point) / (1 - that of floating point)",
    0.5,
    "half of what tells steps apart is gone",
)
GAUSSIAN = Phenomenon(
    "gaussian",
    "weights are Gaussian",
    DVD,
    "Sec. 3.1 and Fig. 3",
    "Weights of all layers are distributed like a Gaussian around zero.",
    "Kolmogorov-Smirnov distance to the fitted Gaussian, median over the layers",
    0.05,
    "distribution functions at most 0.05 apart; a Laplace distribution (0.062) or a uniform one (0.057) would not pass",
    at_most=True,
)
TAILS = Phenomenon(
    "tails",
    "weights have long tails",
    DVD,
    "Sec. 3.1 and Fig. 3",
    "Few outliers (0.3 % of the weights) dominate the range between minimum and maximum.",
    "largest |w - mean| over the one expected of a Gaussian of as many weights, median over the layers",
    1.1,
    "beyond a Gaussian by a tenth; the layer in the paper's figure has 6.7 deviations where 5.6 are expected, 1.19 times",
)
CLIPPING = Phenomenon(
    "clipping",
    "tighter weight ranges help",
    DVD,
    "Sec. 3.1 and Fig. 3",
    "Searching for the bounds of the grid (PBQ) instead of min-max lowers the deviation of the weight error by 39 %.",
    "1 - deviation of the error with PBQ over that with min-max, 4 bits, median over the layers",
    0.2,
    "half of what the paper reports",
)
UNEVEN = Phenomenon(
    "uneven",
    "outputs change unevenly",
    DVD,
    "Sec. 3.3, Eq. 4",
    "The output evolves unevenly along the trajectory: some steps change it much, others little.",
    "largest over smallest relative L1 change between successive outputs, mean over the prompts",
    2.0,
    "one step is worth two others",
)
REDUNDANT = Phenomenon(
    "redundant",
    "many steps are redundant",
    DVD,
    "Sec. 3.3 and Fig. 2",
    "Many steps change the output so little that they can do with few bits (half of 50 steps in the paper's example).",
    "share of the steps that delta-GBS gives few bits with delta = 0.1, mean over the prompts",
    0.25,
    "half of the paper's example",
)
ALL = (STEPS, CHANNELS, COVERAGE, OUTLIERS, COLLAPSE, CONFUSION, GAUSSIAN, TAILS, CLIPPING, UNEVEN, REDUNDANT)
