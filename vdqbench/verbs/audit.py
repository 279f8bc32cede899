"""recompute what the papers' own tables imply, and write what does not follow as a page"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from vdqbench.config import CONF
from vdqbench.errors import ConfigError, nearest
from vdqbench.progress import width
from vdqbench.store import write_atomic


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="vdqbench audit", description=__doc__)
    parser.add_argument("papers", nargs="*", help="folders of conf/table, such as qvd; all when left out")
    parser.add_argument("--to", default=None, type=Path, help="the page; results/audit.md when all papers are audited")
    parser.add_argument("--config-dir", default=None, type=Path, help="a folder with tables of your own, instead of the shipped ones")
    options = parser.parse_args(arguments)
    from vdqbench.report.audit import REMARK, RIGHT, WRONG, audit, papers, to_markdown

    known = papers(options.config_dir or CONF)
    for name in options.papers:
        if name not in known:
            raise ConfigError(f"{name} is no paper with tables{nearest(name, known)}")
    tables = {name: known[name] for name in options.papers or known}
    found = {name: audit(each) for name, each in tables.items()}
    console = Console(width=width(), highlight=False)
    for name, findings in found.items():
        console.print(Text(f"{name}: {sum(f.state == RIGHT for f in findings)} statements follow", style="bold"))
        for state, style in ((WRONG, "red"), (REMARK, "dim")):
            for f in findings:
                if f.state == state:
                    console.print(Text(f"  {state}: {f.table.rpartition('/')[2]}, {f.check}: {f.text}", style=style))
    page = options.to or (None if options.papers else Path("results/audit.md"))
    if page is not None:
        text = to_markdown(found, tables)
        write_atomic(page, lambda file: file.write_text(text, encoding="utf-8"))
        console.print(f"wrote {page}", markup=False, soft_wrap=True)
    return 0
