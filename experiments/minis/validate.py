"""Validate the minis' evaluators: how every score answers to damage of known severity, written to results/evaluators.{md,csv}.

    python experiments/minis/validate.py            # about a minute on one idle core: 64 held-out videos, 6 severities

The number of a cell is Spearman's rank correlation of the severity with the score's mean over the videos, or with the distance to the
undamaged videos, and signed so that 1 means that the score gets worse with every step. `MUST_SEE` says, before anything is measured,
which damage a score has to answer to and why; there the bar is 0.95, which of six severities no exchanged pair passes. What was
declared and is missed all the same stays declared and is explained in `MISSED`; a miss without an explanation fails the command.

Pictures and frame order are damaged in every video, ever more. A colour is the caption's or it is not, so that wrong colours, wrong
captions and videos played backwards are graded by their share of the videos. A set whose colours all change places, or whose videos
all run backwards, is again a set of shapes videos, and a distance between sets need not see it where colours and motions are
balanced; set distances are therefore measured on the red and yellow videos there, or on what moves right, down or grows.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distortions import DISTORTIONS
from scipy.stats import spearmanr

from vdqbench import shapes
from vdqbench.compose import Composer
from vdqbench.metrics.base import PerVideo, ScoreInfo, VideoBatch
from vdqbench.score import build

METRICS = (
    "attributes",
    "clip",
    "fidelity",
    "mini_fvd",
    "mini_quality",
    "vbench_background_consistency_mini_clip",
    "vbench_temporal_flickering",
    "vbench_motion_smoothness",
    "vbench_overall_consistency_mini_clip",
)
"""All of the minis but the dynamic degree: a share of videos above a threshold, of which no damage here asks anything."""
BAR = 0.95
DIGITS = 6
"""Decimals of a value, relative to the largest, that are ranked: sums of the same frames in another order differ in the seventh."""


@dataclass(frozen=True)
class Damage:
    """A column of the table.

    Attributes:
        how: what happens as the severity grows.
        share: whether the severity is the share of the videos that are fully damaged, and not the strength in every one.
        seen_in: attribute and its values of the videos in which a distance between sets can see it; None for all videos.
    """

    how: str
    share: bool = False
    seen_in: tuple[str, tuple[str, ...]] | None = None


RED_YELLOW, ONE_WAY = ("colour", ("red", "yellow")), ("motion", ("right", "down", "growing"))
DAMAGES = {
    "noise": Damage("white noise, drawn anew for each frame, up to 64 levels of deviation"),
    "blur": Damage("Gaussian blur, up to 7 % of the frame's height"),
    "blockiness": Damage("blocks of a sixth of the frame's height fade into their means"),
    "frame_shuffle": Damage("frames are delayed at random, up to the length of the video"),
    "colour_swap": Damage("share of videos whose red, green and blue change places", True, RED_YELLOW),
    "wrong_motion": Damage("every video is slowed down, stands still half way, and runs backwards in the end", False, ONE_WAY),
    "backwards": Damage("share of videos that run backwards", True, ONE_WAY),
    "wrong_caption": Damage("share of prompts replaced by another video's; no frame is touched", True),
}
PICTURE = ("noise", "blur", "blockiness")
MEANING = ("colour_swap", "wrong_motion", "backwards")
FRAMES_CHANGE = "it compares frames of one video: noise and disorder make them differ; blur and blocks make them more alike or less"
PAIRED = "it compares with the undamaged frame in the same place"
MUST_SEE: dict[str, tuple[tuple[str, ...], str]] = {
    "clipsim": (("colour_swap", "wrong_caption"), "it compares each frame with the caption; a frame shows no motion"),
    "clip_temp": (("noise", "frame_shuffle"), FRAMES_CHANGE),
    "colour": (("colour_swap", "wrong_caption"), "it names the colour, which other damage leaves to be seen"),
    "shape": (("wrong_caption",), "it names the shape, which is the caption's as long as it can be made out"),
    "background": (("wrong_caption",), "it names the background, which stays grey when colours change places"),
    "motion": (("wrong_motion", "backwards", "wrong_caption"), "it names the motion"),
    "attributes": ((*MEANING, "wrong_caption"), "the mean of the four"),
    "mini_vqa_t": ((*PICTURE, "frame_shuffle"), "technical quality: pictures and their order, whatever they show"),
    "mini_vqa_a": (PICTURE, "aesthetic quality: pictures, not their order, whatever they show"),
    "mini_fvd": ((*PICTURE, "frame_shuffle", *MEANING), "whole clips against the undamaged set"),
    "mini_kvd": ((*PICTURE, "frame_shuffle", *MEANING), "whole clips against the undamaged set"),
    "mini_fid_vid": (
        (*PICTURE, "frame_shuffle", "colour_swap"),
        "segments of 4 frames show pictures and jumps between them, hardly which way something moves",
    ),
    "psnr": ((*PICTURE, "frame_shuffle", *MEANING), PAIRED),
    "ssim": ((*PICTURE, "frame_shuffle", *MEANING), PAIRED),
    "clip_cosine": ((*PICTURE, "frame_shuffle", *MEANING), PAIRED),
    "temporal_error": (
        ("noise", "frame_shuffle", "wrong_motion", "backwards"),
        "it compares changes from frame to frame with the undamaged video's",
    ),
    "background_consistency_mini_clip": (("noise", "frame_shuffle"), FRAMES_CHANGE),
    "temporal_flickering": (("noise", "frame_shuffle"), FRAMES_CHANGE),
    "motion_smoothness_linear": (("noise", "frame_shuffle"), FRAMES_CHANGE),
    "overall_consistency_mini_clip": ((*MEANING, "wrong_caption"), "it compares the whole video with the caption, motion included"),
}
"""What each score has to answer to, and the reason, which also says why not to the rest."""
VERDICT = (
    "a video's motion is right or wrong, and nearly all verdicts turn between 0.4 and 0.6, where the video stands still; before and after "
    "they are equal, which a rank correlation counts against it. It never rises, and graded by the share of videos (backwards) it is 1"
)
DROWNED = (
    "it falls up to 0.8 and rises at the last step: to mini_clip frames that drown in noise are alike. Of two noises "
    "beyond 50 levels it must not be asked which is stronger"
)
MISSED: dict[tuple[str, str], str] = {
    ("clip_temp", "noise"): DROWNED,
    ("background_consistency_mini_clip", "noise"): DROWNED,
    ("motion", "wrong_motion"): VERDICT,
    ("attributes", "wrong_motion"): VERDICT,
    ("clip_cosine", "wrong_motion"): (
        "it falls up to 0.6, just past the standstill, and rises again as the video runs backwards: a frame's features say what it "
        "shows and hardly where, and it stays above 0.96 throughout"
    ),
    ("temporal_error", "wrong_motion"): (
        "it adds up the changes of both videos where they do not coincide, about 1 + |speed| times the reference's, so that it is "
        "low near the standstill; it rises from there on"
    ),
}
"""Declared in `MUST_SEE`, measured below the bar, and why."""


def response(severities: Sequence[float], values: Sequence[float], higher_is_better: bool) -> float | None:
    """Spearman's rank correlation of severity and badness in -1..1, ties sharing their mean rank; None where all values are equal."""
    found = np.asarray(values, float)
    found = np.round(found / (np.abs(found).max() or 1), DIGITS)
    if np.ptp(found) == 0:
        return None
    return float(spearmanr(severities, -found if higher_is_better else found)[0])


def metrics(of_sets: bool) -> list[Any]:
    """The evaluators of sets, or those of single videos, as they are configured for the minis, on the CPU; intervals are not needed."""
    overrides = ["model=mini_stdit", f"metric=[{','.join(METRICS)}]", "metric.mini_fvd.resamples=0"]
    nodes = [options for options in Composer().plain(overrides)["metric"].values() if (options["mode"] == "set") == of_sets]
    return [build({**options, **({"device": "cpu"} if "device" in options else {})}) for options in nodes]


@dataclass(frozen=True)
class Videos:
    """Frames uint8 [N, T, H, W, 3], the prompts that they are judged by, and the scenes that they truly show."""

    frames: np.ndarray
    prompts: list[str]
    scenes: list[shapes.Scene]

    def only(self, seen_in: tuple[str, tuple[str, ...]] | None) -> Videos:
        """Those whose attribute has one of the values; all for None."""
        kept = [i for i, scene in enumerate(self.scenes) if seen_in is None or getattr(scene, seen_in[0]) in seen_in[1]]
        return Videos(self.frames[kept], [self.prompts[i] for i in kept], [self.scenes[i] for i in kept])

    def batch(self, references: Videos) -> VideoBatch:
        return VideoBatch(torch.from_numpy(self.frames), self.prompts, torch.from_numpy(references.frames))


def held_out(count: int, seed: int) -> Videos:
    """One video of each of the first evaluation scenes."""
    scenes = shapes.scenes("eval")[:count]
    return Videos(shapes.render(scenes, seed, np.arange(count)), [scene.caption for scene in scenes], scenes)


def damaged(videos: Videos, name: str, severity: float, seed: int) -> Videos:
    """Every video damaged by the same severity; for `wrong_caption` at 1, every prompt its neighbour's."""
    if name == "wrong_caption":
        return Videos(videos.frames, videos.prompts[1:] + videos.prompts[:1] if severity else videos.prompts, videos.scenes)
    made = [DISTORTIONS[name](video, severity, np.random.default_rng([seed, i])) for i, video in enumerate(videos.frames)]
    return Videos(np.stack(made), videos.prompts, videos.scenes)


def shared(clean: Videos, spoilt: Videos, share: float, seed: int) -> tuple[Videos, np.ndarray]:
    """A share of the videos spoilt, the others clean, and which [N] they are; those of a smaller share are among them."""
    n = len(clean.prompts)
    chosen = np.zeros(n, bool)
    chosen[np.random.default_rng(seed).permutation(n)[: round(share * n)]] = True
    frames = np.where(chosen[:, None, None, None, None], spoilt.frames, clean.frames)
    prompts = [spoilt.prompts[i] if chosen[i] else clean.prompts[i] for i in range(n)]
    return Videos(frames, prompts, clean.scenes), chosen


def values_of(evaluators: Sequence[PerVideo], videos: Videos, references: Videos) -> dict[str, np.ndarray]:
    """The value [N] of each video, by score."""
    batch = videos.batch(references)
    return {name: value.double().numpy() for evaluator in evaluators for name, value in evaluator.measure(batch).items()}


def distances_of(videos: Videos, references: Videos) -> dict[str, float]:
    """The distances of the set to the references, by score."""
    found: dict[str, float] = {}
    for evaluator in metrics(of_sets=True):
        evaluator.update(videos.batch(references))
        found |= {name: score.mean for name, score in evaluator.compute().items()}
    return found


def ladder(
    name: str, clean: Videos, untouched: dict[str, np.ndarray], severities: Sequence[float], seed: int, evaluators: Sequence[PerVideo]
) -> list[dict[str, float]]:
    """Means over the videos at each severity, by score; `untouched` are the clean videos' values.

    A share's mean is that of the values of its spoilt and its clean videos.
    """
    if not DAMAGES[name].share:
        rungs = [values_of(evaluators, damaged(clean, name, severity, seed), clean) for severity in severities if severity]
        rungs = [untouched] * (len(severities) - len(rungs)) + rungs
    else:
        spoilt = damaged(clean, name, 1.0, seed)
        worst = values_of(evaluators, spoilt, clean)
        picks = [shared(clean, spoilt, severity, seed)[1] for severity in severities]
        rungs = [{score: np.where(pick, worst[score], values) for score, values in untouched.items()} for pick in picks]
    return [{score: float(values.mean()) for score, values in rung.items()} for rung in rungs]


def set_ladder(name: str, clean: Videos, severities: Sequence[float], seed: int) -> list[dict[str, float]]:
    """Distances of the set at each severity to itself undamaged, by score."""
    if not DAMAGES[name].share:
        return [distances_of(damaged(clean, name, severity, seed), clean) for severity in severities]
    spoilt = damaged(clean, name, 1.0, seed)
    return [distances_of(shared(clean, spoilt, severity, seed)[0], clean) for severity in severities]


def measure(count: int, levels: int, seed: int, say: Callable[[str], Any]) -> list[dict[str, str]]:
    """The rows of the CSV file: one per score and damage, with the values at each severity."""
    severities = np.linspace(0, 1, levels).tolist()
    singles = metrics(of_sets=False)
    of_single, of_sets = ([info for metric in some for info in metric.scores] for some in (singles, metrics(of_sets=True)))
    infos: list[ScoreInfo] = of_single + of_sets
    if apart := {info.name for info in infos} ^ MUST_SEE.keys():
        raise ValueError(f"MUST_SEE must name the scores of METRICS and no others; it differs in {', '.join(sorted(apart))}")
    clean, rows = held_out(count, seed), []
    untouched = values_of(singles, clean, clean)
    for name, damage in DAMAGES.items():
        visible = clean.only(damage.seen_in)
        rungs = ladder(name, clean, untouched, severities, seed, singles)
        distances = set_ladder(name, visible, severities, seed)
        for info in infos:
            seen, by = (visible, distances) if info in of_sets else (clean, rungs)
            values = [rung[info.name] for rung in by]
            rho = response(severities, values, bool(info.higher_is_better))
            rows.append(
                {
                    "score": info.name,
                    "damage": name,
                    "n": str(len(seen.prompts)),
                    "must_see": "yes" if name in MUST_SEE[info.name][0] else "",
                    "spearman": "" if rho is None else f"{rho:.3f}",
                    **{f"{severity:.3g}": f"{value:.8g}" for severity, value in zip(severities, values, strict=True)},
                }
            )
        say(f"{name}: measured\n")
    return rows


def below(rows: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The rows of what a score must see and does not."""
    return [row for row in rows if row["must_see"] and not (row["spearman"] and float(row["spearman"]) >= BAR)]


def unexplained(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """What `MISSED` does not say of these rows, or says and is not so."""
    missed = {(row["score"], row["damage"]) for row in below(rows)}
    return [f"{score} with {damage}" for score, damage in sorted(missed ^ MISSED.keys())]


def grid(rows: Sequence[Mapping[str, str]], cell: Callable[[Mapping[str, str]], str]) -> list[str]:
    """A Markdown table of scores by damages."""
    by = {(row["score"], row["damage"]): row for row in rows}
    lines = ["| score | " + " | ".join(name.replace("_", " ") for name in DAMAGES) + " |", "|---" + "|---:" * len(DAMAGES) + "|"]
    for score in MUST_SEE:
        lines.append(f"| {score} | " + " | ".join(cell(by[score, name]) for name in DAMAGES) + " |")
    return lines


def rank_cell(row: Mapping[str, str]) -> str:
    rho = row["spearman"] or "–"
    if not row["must_see"]:
        return rho
    return f"**{rho}** †" if below([row]) else f"**{rho}**"


def ends_cell(row: Mapping[str, str]) -> str:
    first, *_, last = (value for key, value in row.items() if key.replace(".", "").isdigit())
    return f"{float(first):.3g} → {float(last):.3g}" if row["spearman"] else "–"


def document(rows: Sequence[Mapping[str, str]], command: str, seed: int) -> str:
    """results/evaluators.md from the rows of results/evaluators.csv."""
    severities = [key for key in rows[0] if key.replace(".", "").isdigit()]
    counts = {name: sorted({int(row["n"]) for row in rows if row["damage"] == name}, reverse=True) for name in DAMAGES}
    declared, missed = sum(bool(row["must_see"]) for row in rows), below(rows)
    notes: dict[str, list[str]] = {}
    for row in missed:
        named = f"{row['score']} with {row['damage'].replace('_', ' ')} ({row['spearman'] or 'no answer'})"
        notes.setdefault(MISSED.get((row["score"], row["damage"]), "not explained"), []).append(named)
    first = f"Real shapes videos of held-out scenes (n = {counts['noise'][0]}, seed {seed}) are damaged by severities"
    return "\n".join(
        [
            "# How the minis' evaluators answer to graded damage",
            "",
            f"{first} {', '.join(severities)} and",
            "scored. A cell is Spearman's rank correlation of the severity with the score's mean, or with the distance to the undamaged",
            "videos, signed so that 1 means that the score gets worse with every step. **Bold**: the score must see this damage, and the",
            f"bar is {BAR:g}. Plain: it need not; what it does is shown all the same. –: it does not answer, all its values are equal.",
            "",
            f"    {command}",
            "",
            *grid(rows, rank_cell),
            "",
            f"Of {declared} answers declared before the measurement, {declared - len(missed)} reach the bar and {len(missed)} do not (†):",
            "",
            *[f"- {', '.join(named)}: {why}." for why, named in notes.items()],
            "",
            "A wrong caption is seen by the scores that read captions and by no other. The dynamic degree of `vbench_mini` is left out: a",
            "share of videos above a threshold, of which no damage here asks anything.",
            "",
            "## What a score must see, and why",
            "",
            "| score | must see | because |",
            "|---|---|---|",
            *[f"| {score} | {', '.join(s).replace('_', ' ') or 'none of these'} | {why} |" for score, (s, why) in MUST_SEE.items()],
            "",
            "## The damage",
            "",
            "| damage | as the severity grows | n | n of set distances |",
            "|---|---|---:|---:|",
            *[f"| {name.replace('_', ' ')} | {d.how} | {counts[name][0]} | {counts[name][-1]} |" for name, d in DAMAGES.items()],
            "",
            "Where n differs, a distance between sets is measured on the red and yellow videos (colour swap), or on what moves right, down",
            "or grows: damage that turns a balanced set into another balanced set is no distance. Where the severity is a share, the mean",
            "of a score of single videos is a mixture, and what its correlation says is that fully damaged videos score worse.",
            "",
            "## How much",
            "",
            "The score of the undamaged videos and that at full severity.",
            "",
            *grid(rows, ends_cell),
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=64)
    parser.add_argument("--levels", type=int, default=6)
    parser.add_argument("--seed", type=int, default=2025)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[2] / "results")
    args = parser.parse_args()

    with torch.inference_mode():
        rows = measure(args.videos, args.levels, args.seed, sys.stdout.write)
    with (args.out / "evaluators.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    command = f"python experiments/minis/validate.py --videos {args.videos} --levels {args.levels} --seed {args.seed}"
    text = document(rows, command, args.seed)
    (args.out / "evaluators.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    if wrong := unexplained(rows):
        sys.stdout.write(f"MISSED does not fit what was measured: {', '.join(wrong)}\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
