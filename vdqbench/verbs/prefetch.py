"""fetch all weights that the named cells need, of their metrics too: model=NAME, metric=[NAME], table=NAME, ...; verifies their hashes"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vdqbench.errors import ConfigError

if TYPE_CHECKING:
    from vdqbench.assets import Need

HELP = """\
vdqbench prefetch: fetch all weights that cells need, those of their metrics included, so that they run without a network

  vdqbench prefetch model=opensora_v1                        a model, and the metrics that are usually taken of it
  vdqbench prefetch model=opensora_v1 'metric=[vqa,clip_evalcrafter]'
  vdqbench prefetch table=asq_tsq/table3                     all that a table's cells need
  vdqbench prefetch ... plan=true                            says what is needed and what of it is there; fetches nothing

  Files of the Hugging Face hub go to its own cache (HF_HOME), others below ~/.cache/vdqbench (XDG_CACHE_HOME). A download that broke off
  goes on where it stopped. Every file whose SHA-256 is known is compared with it; one that differs is deleted, and named.
  Afterwards everything runs with HF_HUB_OFFLINE=1.

exit codes: 0 all is there, 1 something could not be fetched (each is named), 2 wrong use
"""


def main(arguments: Sequence[str]) -> int:
    if not arguments or set(arguments) & {"-h", "--help", "help"}:
        sys.stdout.write(HELP)
        return 0
    from vdqbench.fetch import FetchError, fetch, space
    from vdqbench.progress import Progress, width

    needs, others, plan, quiet = needed(arguments)
    console, progress = Console(highlight=False, width=width()), Progress(quiet=quiet)
    for other in others:
        console.print(
            f"{other} is fetched by open_clip when it is first used: run the cells once with a network", markup=False, soft_wrap=True
        )
    if not needs:
        console.print("these cells need nothing from elsewhere: their weights are in the package, or in the folders given")
        return 0
    console.print(overview(needs))
    missing = [need for need in needs if not need.asset.is_here]
    total = f"{amount(missing, 2)} to fetch" if missing else "everything is there"
    console.print(total, soft_wrap=True)
    if plan:
        return 0
    if missing and (full := list(space([need.asset for need in missing]))):
        raise ConfigError("; ".join(full))
    failures = []
    for need in needs:
        try:
            fetch(need.asset, progress)
        except FetchError as error:
            failures.append(f"{need.owner}: {error}")
            progress.say(failures[-1])
    for failure in failures:
        console.print(failure, style="red", soft_wrap=True, markup=False)
    if not failures:
        console.print(f"{len(needs)} assets are there and verified; HF_HUB_OFFLINE=1 runs work", soft_wrap=True)
    return int(bool(failures))


def needed(words: Sequence[str]) -> tuple[list[Need], list[str], bool, bool]:
    """What the cells need, each asset once; what else they need; whether only to plan, and whether to be quiet.

    Raises:
        ConfigError: wrong use.
    """
    from vdqbench.assets import of_metrics, of_model, unknown
    from vdqbench.config import Model
    from vdqbench.sweep import Study

    study = Study.of(words)
    if study.arguments.show_config:
        raise ConfigError("--cfg shows cells; leave out the word prefetch to see them")
    found: dict[Any, Need] = {}
    others: dict[str, None] = {}
    quiet = False
    for job in study.jobs:
        config = study.composer.plain(job)
        model = Model.from_config(config["model"])
        if model.unavailable:
            raise ConfigError(f"model={model.name} cannot be run: {model.unavailable}")
        quiet = bool(config["quiet"])
        for need in (*of_model(model), *of_metrics(config.get("metric") or {})):
            found.setdefault((need.asset.source, need.asset.files), need)
        others |= dict.fromkeys(unknown(config.get("metric") or {}))
    return list(found.values()), list(others), study.plan, quiet


def amount(needs: Sequence[Need], digits: int) -> str:
    """How much it is together, in GB; what nobody states is counted apart."""
    sizes = [need.asset.gigabytes for need in needs]
    unknown = sizes.count(None)
    return f"{sum(size or 0 for size in sizes):.{digits}f} GB" + (f" and {unknown} of unknown size" if unknown else "")


def overview(needs: Sequence[Need]) -> Table:
    """A line for each asset: what of, from where, how large, under which licence, whether it is there."""
    table = Table("for", "part", "source", "GB", "licence", "", box=None, padding=(0, 2, 0, 0))
    table.columns[0].overflow = table.columns[2].overflow = "fold"
    for need in needs:
        asset = need.asset
        licence = f"{asset.licence} (gated: to be accepted on the hub)" if asset.gated else asset.licence
        there = "there" if asset.is_here else "missing"
        size = "?" if asset.gigabytes is None else f"{asset.gigabytes:.2g}" if asset.gigabytes < 0.1 else f"{asset.gigabytes:.1f}"
        table.add_row(escape(need.owner), asset.part, asset.source, size, licence, there, style=None if there == "there" else "yellow")
    return table
