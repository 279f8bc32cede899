"""How much longer a simulated cell takes than its full-precision cell: denoiser calls of an STDiT of the mini's size.

    python experiments/bench/sim_overhead.py [--rounds 15] [--out experiments/bench/sim_overhead.md]

Random weights and inputs, 8 prompts with both guidance branches, float32, one thread. In each round every method runs once,
between two calls of the full-precision model; the ratio is that to the mean of the two. What is compared is processor time,
so that other processes on the machine disturb little. Weights are quantized before (once each range, `setup`).
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from vdqbench.calibrate import calibrate
from vdqbench.clock import StepClock
from vdqbench.models.stdit import STDiT
from vdqbench.quant.quantize import quantize
from vdqbench.quant.recipe import Recipe

CONF = Path(__file__).resolve().parents[2] / "conf"
MINI = dict(
    input_size=(16, 8, 8),
    hidden_size=128,
    depth=6,
    num_heads=4,
    caption_channels=96,
    model_max_length=12,
    pred_sigma=False,
    space_scale=0.5,
)
METHODS = ("cw_tw", "tsw", "asq", "tsq", "dynamic", "smoothquant", "minmax_dynamic")
STEPS, PROMPTS = 20, 8
LAYERS = (
    *(f"{block}.{name}" for block in ("attn", "attn_temp") for name in ("q", "k", "v", "proj")),
    *("cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj", "mlp.fc1", "mlp.fc2"),
)


def recipe(method: str, bits: int = 8) -> Recipe:
    config = OmegaConf.create({"method": OmegaConf.load(CONF / "method" / f"{method}.yaml"), "sampler": {"steps": STEPS}})
    node: Any = OmegaConf.to_container(config, resolve=True)
    return Recipe.from_config(node["method"], {"weight": bits, "activation": bits}, STEPS)


def model() -> STDiT:
    """Random weights everywhere, so that no layer's input is trivially small."""
    made = STDiT(**MINI).eval().requires_grad_(False)
    for parameter in made.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.02)
    return made.split_qkv()


def batch(prompts: int) -> dict[str, torch.Tensor]:
    rows = 2 * prompts
    mask = (torch.arange(MINI["model_max_length"]) < 8).expand(rows, -1)
    y = torch.randn(rows, 1, MINI["model_max_length"], MINI["caption_channels"])
    return dict(x=torch.randn(rows, 4, *MINI["input_size"]), timestep=torch.full((rows,), 500), y=y, mask=mask)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="write the table as Markdown too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    stdit, clock = model(), StepClock()
    layers = {f"blocks.{i}.{name}": name for i in range(MINI["depth"]) for name in LAYERS}

    def trajectory() -> None:
        inputs = batch(1)
        clock.reset(STEPS)
        for _ in range(STEPS):
            stdit(**inputs)
            clock.advance()

    calibration = calibrate(stdit, layers, [trajectory], clock)
    inputs = batch(PROMPTS)

    def seconds(run: STDiT) -> float:
        clock.reset(STEPS)
        began = time.process_time()
        run(**inputs)
        return time.process_time() - began

    quantized, setup = {}, {}
    for method in METHODS:
        quantized[method] = copy.deepcopy(stdit)
        began = time.process_time()
        quantize(quantized[method], layers, recipe(method), calibration, clock)
        setup[method] = time.process_time() - began + seconds(quantized[method]) - seconds(quantized[method])

    ratios: dict[str, list[float]] = {method: [] for method in METHODS}
    exact = [seconds(stdit)]
    for _ in range(options.rounds):
        for method in METHODS:
            taken = seconds(quantized[method])
            exact.append(seconds(stdit))
            ratios[method].append(2 * taken / (exact[-1] + exact[-2]))

    table = Table(
        "method",
        "min",
        "median",
        "setup s",
        title=f"time of a simulated W8A8 call / full precision ({statistics.median(exact) * 1e3:.0f} ms)",
    )
    rows = [(m, f"{min(r):.3f}", f"{statistics.median(r):.3f}", f"{setup[m]:.2f}") for m, r in ratios.items()]
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if options.out:
        about = f"{options.rounds} rounds, PyTorch {torch.__version__}"
        lines = ["| method | min | median | setup s |", "|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
        options.out.write_text(f"Time of a simulated W8A8 call relative to full precision ({about}).\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
