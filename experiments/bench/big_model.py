"""Peak memory and time per step of a real denoiser of full size, quantized: random weights, random inputs, two steps.

    python experiments/bench/big_model.py model=hunyuan_video method=dvd_quant bits=w4a8 [--out results/bench/hunyuan_video.md]
    python experiments/bench/big_model.py model=wan method=minmax_dynamic bits=w4a8 model.call.num_frames=5 model.call.height=64

All words are overrides of a cell; the method must need no calibration. It takes a GPU if there is one. The denoiser is built from its
architecture and filled with random values in the model's precision; nothing is downloaded. Time and memory are those of simulated
quantization, which computes in full precision: they say what running this bench on the model takes, not what a kernel would.
"""

from __future__ import annotations

import argparse
import importlib
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vdqbench.compose import Composer
from vdqbench.config import Cell
from vdqbench.environment import environment, revision
from vdqbench.quant.quantize import quantize
from vdqbench.store import write_atomic

STEPS = 2


def filled(denoiser: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The denoiser on the device with one stretch of normal values repeated through all parameters: drawing 12.8 billion takes minutes."""
    made = denoiser.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    values = torch.randn(1 << 20, device=device, dtype=torch.float32).mul_(0.02).to(dtype)
    for tensor in (*made.parameters(), *made.buffers()):
        flat = tensor.view(-1)
        for part in flat.split(len(values)):
            part.copy_(values[: len(part)])
    return made


def given(example: dict[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Random values in place of the example's tensors without any: masks are full, times and guidance 500."""

    def one(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: one(part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(one, value))
        if not isinstance(value, Tensor):
            return value
        if not value.is_floating_point():
            return torch.full(value.shape, 1 if value.ndim > 1 or value.dtype == torch.bool else 500, dtype=value.dtype, device=device)
        if value.ndim < 2:
            return torch.full(value.shape, 500.0, device=device, dtype=dtype)
        return torch.randn(value.shape, device=device, dtype=dtype)

    return one(example)


def peak(device: torch.device) -> float:
    """Most memory in GB: of the GPU since it was last asked for, or of the process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="+")
    parser.add_argument("--out", type=Path, help="write the table as Markdown too")
    options = parser.parse_args()
    cell = Cell.from_config(Composer().plain([*options.overrides, f"sampler.steps={STEPS}"]), here=False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, cell.model.dtype)
    torch.manual_seed(0)

    module, name = str(cell.model.adapter).rsplit(".", 1)
    adapter = getattr(importlib.import_module(module), name).outlined(cell.model)
    inputs = given(adapter.example(), device, dtype)
    layers, anatomy, clock = adapter.layers(), adapter.anatomy(), adapter.clock
    denoiser = filled(adapter.denoiser, device, dtype)
    size = sum(parameter.numel() * parameter.element_size() for parameter in denoiser.parameters()) / 1e9

    def step_seconds() -> list[float]:
        clock.reset(STEPS)
        seconds = []
        for _ in range(STEPS):
            began = time.perf_counter()
            denoiser(**inputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
            clock.advance()
        return seconds

    seconds = step_seconds()
    rows = [("full precision", "", seconds, peak(device))]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    with quantize(denoiser, layers, cell.recipe, None, clock, anatomy=anatomy, keep=False) as quantized:
        step_seconds()  # the first call quantizes the weights
        setup = time.perf_counter() - began
        seconds = step_seconds()
        rows.append((f"{cell.config['method']['name']} {cell.config['bits']['name']}", f"{setup:.1f}", seconds, peak(device)))
        report = quantized.report()

    machine = f"{environment()['processor']}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    lines = [
        f"{cell.model.name} with random weights in {cell.model.dtype} ({size:.2f} GB), {report['quantized_layers']} layers quantized by "
        f"simulation, call {dict(cell.model.call)}; {machine}, PyTorch {torch.__version__}, revision {revision()}.",
        "",
        "| | quantizing and two steps (s) | seconds per step | peak memory (GB) |",
        "|---|--:|--:|--:|",
    ]
    for name, setup, seconds, most in rows:
        lines.append(f"| {name} | {setup} | {', '.join(f'{one:.2f}' for one in seconds)} | {most:.2f} |")
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(options.out, lambda path: path.write_text(text))


if __name__ == "__main__":
    main()
