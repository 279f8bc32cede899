"""score a folder of your own videos without generating any: videos=DIR prompts=FILE metric=[NAME,...]"""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vdqbench.errors import ConfigError, Unsupported, nearest
from vdqbench.progress import Progress, width
from vdqbench.store import Store, write_atomic

if TYPE_CHECKING:
    from vdqbench.collection import Collection, Entry

HELP = """\
vdqbench score: score a folder of your own videos; nothing is generated

  vdqbench score videos=DIR prompts=FILE [metric=[NAME,...]] [references=DIR] [images=DIR] [out=FOLDER] [OPTION=VALUE ...]

  videos=DIR       mp4, m4v, mov, gif, webm, mkv, avi, and folders of images (one per frame), in natural order of names
  prompts=FILE     .txt: one prompt a line, in that order; .csv: columns file and prompt; .json: {"file": "prompt", ...}
  metric=[...]     clip when left out; vdqbench list metric shows all
  references=DIR   videos of the same names, for metrics that compare with a reference
  images=DIR       images of the same names, for metrics that compare with the image that a video was made from
  out=FOLDER       scores.json, scores.csv and the features already computed go there (results/scores/NAME OF DIR)
  model=NAME       takes the backbone of CLIP metrics that fits a model's domain; ViT-B-32 with OpenAI's weights when left out
  quiet=true       no progress

  options of metrics as in a cell:  metric.clip.backbone={model:ViT-B-32,weights:/path/to/open_clip_model.safetensors}
  videos of the shapes domain:      vdqbench score videos=DIR prompts=FILE metric=[clip,attributes] model=mini_stdit

exit codes: 0 every video was scored, 1 some were missing or unreadable or a metric failed (each is named), 2 wrong use
"""
OWN = ("videos", "prompts", "references", "images")
CONFIG = ("metric", "model", "out", "quiet")
REAL = "model.clip={model:ViT-B-32,weights:openai}"


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    videos: Path
    prompts: Path
    references: Path | None
    images: Path | None
    out: Path
    quiet: bool
    metrics: Mapping[str, Mapping[str, Any]]

    @classmethod
    def parse(cls, words: Sequence[str]) -> Request:
        """Raises ConfigError for wrong use, before anything is read."""
        from vdqbench import assets
        from vdqbench.compose import Composer
        from vdqbench.score import check, needs_references
        from vdqbench.sweep import Arguments

        arguments = Arguments.parse(words)
        if arguments.show_config:
            raise ConfigError("--cfg belongs to cells; scores.json holds the options that videos were scored with")
        own: dict[str, Path] = {}
        overrides = []
        for word in arguments.overrides:
            key, equals, value = word.partition("=")
            root = key.lstrip("+").split(".")[0]
            if not equals or root not in (*OWN, *CONFIG):
                raise ConfigError(f"{word!r} is not an option of vdqbench score{nearest(root, (*OWN, *CONFIG))}")
            if key in OWN:
                if not value:
                    raise ConfigError(f"{key}= is empty; give a path")
                own[key] = Path(value).expanduser()
            else:
                overrides.append(word)
        for key in OWN[:2]:
            if key not in own:
                raise ConfigError(f"{key} must be given: vdqbench score videos=DIR prompts=FILE metric=[NAME,...]")
        given = {word.partition("=")[0].lstrip("+") for word in overrides}
        defaults = [] if "metric" in given else ["metric=[clip]"]
        if not any(key == "model" or key.startswith("model.clip") for key in given):
            defaults.append(REAL)
        config = Composer(arguments.folders).plain([*defaults, *overrides])
        metrics = config.get("metric") or {}
        if not metrics:
            raise ConfigError("metric=[] names no metric; choose some with metric=[NAME,NAME]")
        check(metrics)
        assets.check(assets.of_metrics(metrics))
        for name, options in metrics.items():
            if options.get("mode") == "system":
                raise ConfigError(
                    f"metric={name} reads the report of a quantized model and cannot be taken of a folder of videos; leave it out"
                )
            if needs_references(options) and "references" not in own:
                raise ConfigError(f"metric={name} compares with reference videos: add references=DIR with videos of the same names")
            if options.get("reference") == "image" and "images" not in own:
                raise ConfigError(f"metric={name} compares with the images that videos were made from: add images=DIR")
        out = Path(config["out"]).expanduser() if "out" in given else Path(config["out"]) / "scores" / own["videos"].resolve().name
        if not isinstance(config["quiet"], bool):
            raise ConfigError(f"quiet={config['quiet']} must be true or false")
        return cls(own["videos"], own["prompts"], own.get("references"), own.get("images"), out, config["quiet"], metrics)


def main(arguments: Sequence[str]) -> int:
    if not arguments or {"-h", "--help", "help"} & set(arguments):
        sys.stdout.write(HELP)
        return 0
    request = Request.parse(arguments)
    from vdqbench.collection import Collection

    collection = Collection.of(request.videos, request.prompts, request.references, request.images)
    progress = Progress(quiet=request.quiet)
    if collection.ignored:
        progress.say(f"not videos, left aside: {', '.join(collection.ignored)}")
    report = run(request, collection, progress)
    write_atomic(request.out / "scores.json", lambda file: file.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n"))
    write_atomic(request.out / "scores.csv", lambda file: file.write_text(_csv(report), encoding="utf-8"))
    console = Console(width=width())
    if report["scores"]:
        console.print(_table(report))
    for line in _summary(report, request.out):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return int(bool(report["problems"] or report["failed"]))


def run(request: Request, collection: Collection, progress: Progress) -> dict[str, Any]:
    """Score every readable video of a collection.

    Returns:
        what scores.json holds: `videos` (file, prompt, shape and scores of each), `scores` as in a record, `problems` (reason by
        name), `failed` (reason by metric), n videos scored of `total`, the options of the metrics, version, time.
    """
    from vdqbench import __version__
    from vdqbench.score import build, entries

    metrics = {name: build(options) for name, options in request.metrics.items()}
    done: list[tuple[Entry, list[int]]] = []
    failed: dict[str, str] = {}
    with progress.stage(f"score {request.videos.name}", len(collection.entries)) as advance:
        for group, batch in collection.batches(Store(request.out / "store")):
            for name in [name for name in metrics if name not in failed]:
                try:
                    metrics[name].update(batch)
                except (Unsupported, ValueError) as error:
                    failed[name] = f"{error} (in {', '.join(entry.name for entry in group)})"
            done += [(entry, list(batch.videos.shape[1:4])) for entry in group]
            advance(len(group))
    scores: dict[str, Any] = {}
    for name, metric in metrics.items():
        if name in failed or not done:
            continue
        try:
            scores |= _finite(entries(name, metric, metric.compute()))
        except (Unsupported, ValueError) as error:
            failed[name] = str(error)
    order = {entry.name: i for i, entry in enumerate(collection.entries)}
    rows: list[dict[str, Any]] = [
        {
            "file": entry.name,
            "prompt": entry.prompt,
            **dict(zip(("frames", "height", "width"), shape, strict=True)),
            "scores": {name: score["values"][i] for name, score in scores.items() if score["values"] is not None},
        }
        for i, (entry, shape) in enumerate(done)
    ]
    rows.sort(key=lambda row: order[row["file"]])
    for name, score in scores.items():
        if score["values"] is not None:
            score["values"] = [row["scores"][name] for row in rows]
    return {
        "videos": rows,
        "scores": scores,
        "problems": collection.problems,
        "failed": failed,
        "n": len(rows),
        "total": collection.total,
        "metric": {name: dict(options) for name, options in request.metrics.items()},
        "version": __version__,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _finite(scores: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The scores, unless one is infinite or no number.

    Raises:
        ValueError: it is.
    """
    for name, score in scores.items():
        if not all(map(math.isfinite, (score["mean"], *(score["interval"] or ())))):
            raise ValueError(f"{name} of these videos is {score['mean']} (95 % interval {score['interval']}); every score must be finite")
    return scores


def _csv(report: Mapping[str, Any]) -> str:
    """A line per video, one per video that could not be scored, and the means last; full precision."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = list(report["scores"])
    writer.writerow(["file", "prompt", "frames", "height", "width", *names, "problem"])
    for row in report["videos"]:
        shape = [row[key] for key in ("file", "prompt", "frames", "height", "width")]
        writer.writerow([*shape, *(row["scores"].get(name, "") for name in names), ""])
    for name, reason in report["problems"].items():
        writer.writerow([name, "", "", "", "", *("" for _ in names), reason])
    writer.writerow(
        [f"mean of {report['n']} of {report['total']}", "", "", "", "", *(report["scores"][name]["mean"] for name in names), ""]
    )
    return stream.getvalue()


def _table(report: Mapping[str, Any]) -> Table:
    """A line per score: mean, standard error over videos or the interval of a set score, n."""
    title = f"n = {report['n']}" + (f" of {report['total']} videos" if report["n"] < report["total"] else " videos")
    table = Table("score", "", "mean", "± se / 95 %", "n", title=title, title_justify="left")
    for score in report["scores"].values():
        arrow = {True: "↑", False: "↓", None: ""}[score["higher_is_better"]]
        table.add_row(Text(score["label"]), arrow, f"{score['mean']:.4f}", _spread(score), str(score["n"]))
    return table


def _spread(score: Mapping[str, Any]) -> str:
    if score["interval"] is not None:
        low, high = score["interval"]
        return f"{low:.4g} .. {high:.4g}"
    values = score["values"]
    if values is None or len(values) < 2:
        return ""
    variance = math.fsum((value - score["mean"]) ** 2 for value in values) / (len(values) - 1)
    return f"± {math.sqrt(variance / len(values)):.4f}"


def _summary(report: Mapping[str, Any], out: Path) -> list[str]:
    """What could not be scored, by name and counted, and where the files are."""
    lines = [f"{name}: {reason}" for name, reason in report["problems"].items()]
    lines += [f"metric {name} failed: {reason}" for name, reason in report["failed"].items()]
    if report["problems"]:
        lines.append(f"{len(report['problems'])} of {report['total']} videos could not be scored and are in no mean")
    return [*lines, f"wrote {out / 'scores.json'} and {out / 'scores.csv'}"]
