"""What the training scripts of the minis share: device, resumable checkpoints, the log, and writing the shipped weights."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WEIGHTS = Path(__file__).resolve().parents[2] / "vdqbench" / "models" / "weights"
LOGS = Path(__file__).resolve().parent / "logs"


def device() -> torch.device:
    """A GPU if there is one, else the CPU, where waiting threads must not spin against the other processes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Checkpoint:
    """Everything a run needs to go on, in one file, replaced atomically; `load` gives the step to go on from."""

    def __init__(self, path: Path, **parts: Any) -> None:
        self.path, self.parts = path, parts
        path.parent.mkdir(parents=True, exist_ok=True)

    def load(self) -> int:
        if not self.path.exists():
            return 0
        saved = torch.load(self.path, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        torch.set_rng_state(saved["rng"])
        return saved["step"]

    def save(self, step: int) -> None:
        state = {name: part.state_dict() for name, part in self.parts.items()}
        torch.save({**state, "rng": torch.get_rng_state(), "step": step}, self.path.with_suffix(".tmp"))
        os.replace(self.path.with_suffix(".tmp"), self.path)


class Log:
    """One CSV row per report, kept under version control beside the script, and the same on the terminal."""

    def __init__(self, name: str) -> None:
        self.path = LOGS / f"{name}.csv"
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def row(self, **values: float) -> None:
        fresh = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if fresh:
                writer.writerow(values)
            writer.writerow(f"{value:.6g}" for value in values.values())
        self.say("  ".join(f"{key} {value:.5g}" for key, value in values.items()))

    @staticmethod
    def say(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def write_weights(name: str, state: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """Write `<name>.safetensors` (bf16) and `<name>.json` into the package."""
    WEIGHTS.mkdir(parents=True, exist_ok=True)
    save_file({key: value.detach().to("cpu", torch.bfloat16).contiguous() for key, value in state.items()}, WEIGHTS / f"{name}.safetensors")
    (WEIGHTS / f"{name}.safetensors").chmod(0o644)
    (WEIGHTS / f"{name}.json").write_text(json.dumps(config, indent=2) + "\n")
