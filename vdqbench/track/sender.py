"""The process with wandb in it: reads a job a line from standard input, writes [success, reason] for each to standard output."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from vdqbench.track import Published
from vdqbench.track.wandb import Wandb


def main(out: Path) -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what wandb prints is no answer
    for line in sys.stdin:
        try:
            job = json.loads(line)
            from vdqbench.track.sending import send_cell, send_table

            path, options = Path(job["path"]), Wandb(**job["options"])
            result = Published(True, send_table(out, path, options) if path.suffix == ".json" else send_cell(path, options))
        except Exception as error:
            result = Published(False, f"{type(error).__name__}: {' '.join(str(error).split())}")
        answers.write(json.dumps(result) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
