"""make one HTML page of everything below a results folder, that opens from disk; figures=pdf for a paper"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from vdqbench.errors import ConfigError, nearest
from vdqbench.progress import Progress, width

if TYPE_CHECKING:
    from vdqbench.record import Record

HELP = """\
vdqbench report: show all records below a results folder, and make one HTML page of them that opens from disk

  vdqbench report                       of results/
  vdqbench report OUT videos=16
  vdqbench report figures=pdf,svg scores=psnr,clipsim

  out=OUT          the results folder (or the first word); results when left out
  page=FILE        where the page is written; OUT/report.html when left out, page=none writes none
  title=TEXT       its heading
  videos=4         videos of each cell that are put into the page: a number, all, none; link refers to the files instead
  figures=A,B      also the plots as files for a paper, to OUT/figures: png, svg, pdf (extra: figures)
  scores=A,B       scores that figures are made of; all when left out

  All records are also printed, and written to OUT/report.csv.

exit codes: 0 done, 2 wrong use
"""
KEYS = ("out", "page", "title", "videos", "figures", "scores")


def main(arguments: Sequence[str]) -> int:
    if set(arguments) & {"-h", "--help", "help"}:
        sys.stdout.write(HELP)
        return 0
    own = _words(arguments)
    out = Path(own.get("out", "results")).expanduser()
    target = own.get("page", str(out / "report.html"))
    from vdqbench.report.html.gather import Videos, gather
    from vdqbench.report.plain import overview, summary, write_csv

    videos = Videos.parse(own.get("videos", "4"))
    formats, scores = _formats(own), _list(own, "scores")
    page, progress = Path(target).expanduser(), Progress()
    found = gather(out, page, videos if target != "none" else Videos(0), progress)
    console = Console(width=width())
    shown, left = _fitting(found.records, console)
    console.print(overview(shown))
    if left:
        console.print(f"{left} more {'score is' if left == 1 else 'scores are'} in the files below", markup=False, highlight=False)
    console.print(summary(found.records), markup=False, highlight=False)
    written = [f"{write_csv(found.records, out / 'report.csv')}"]
    if target != "none":
        from vdqbench.report.html.page import write

        size = write(found, page, own.get("title") or f"Report of {out.resolve().name}", videos)
        written.append(f"{page} ({size / 1e6:.1f} MB)")
    if formats:
        from vdqbench.report.figures import write_figures

        files = write_figures(found, out / "figures", formats, scores, progress)
        written.append(f"{len(files)} figures to {out / 'figures'}")
    for trouble in found.troubles:
        progress.say(trouble)
    for text in written:
        console.print(f"wrote {text}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _fitting(records: Sequence[Record], console: Console) -> tuple[list[Record], int]:
    """The records with as many scores, from the first, as the overview has room for, and how many are left out."""
    from vdqbench.report.plain import overview

    names = list(dict.fromkeys(name for record in records for name in record.scores))
    wide = Console(width=10_000)
    for count in range(len(names), 0, -1):
        shown = [replace(record, scores={n: s for n, s in record.scores.items() if n in names[:count]}) for record in records]
        if wide.measure(overview(shown)).maximum <= console.width:
            return shown, len(names) - count
    return [replace(record, scores={}) for record in records], len(names)


def _words(arguments: Sequence[str]) -> dict[str, str]:
    """Values by key; a first word without a key is the results folder."""
    own: dict[str, str] = {}
    for i, word in enumerate(arguments):
        key, _, value = word.partition("=") if "=" in word else ("out", "=", word) if i == 0 else (word, "", "")
        if key not in KEYS:
            raise ConfigError(f"{word} is not an option of vdqbench report{nearest(key, KEYS)}")
        if not value or key in own:
            raise ConfigError(f"{word}: {key} of vdqbench report must be given once, with a value")
        own[key] = value
    return own


def _list(own: dict[str, str], key: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part for part in own.get(key, "").split(",") if part))


def _formats(own: dict[str, str]) -> tuple[str, ...]:
    known, chosen = ("png", "svg", "pdf"), _list(own, "figures")
    for name in chosen:
        if name not in known:
            raise ConfigError(f"figures={name} is not a format of figures{nearest(name, known)}")
    if "scores" in own and not chosen:
        raise ConfigError(f"scores={own['scores']} chooses scores of figures: add figures=pdf")
    return chosen
