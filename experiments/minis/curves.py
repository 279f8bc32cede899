"""Draw logs/<name>.svg from logs/stdit.csv and logs/vae.csv: the training curves of the shipped weights.

python experiments/minis/curves.py
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

LOGS = Path(__file__).resolve().parent / "logs"
CURVES = {"vae": ["psnr"], "stdit": ["held_0", "held_250", "held_500", "held_750", "backwards"]}
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e")
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 320, 60, 40


def svg(rows: list[dict[str, str]], names: list[str]) -> str:
    """Curves over the step, on a logarithmic vertical axis."""
    steps = [float(row["step"]) for row in rows]
    values = {name: [math.log10(float(row[name])) for row in rows] for name in names}
    low, high = min(map(min, values.values())), max(map(max, values.values()))

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - 110) * step / max(steps)

    def y(value: float) -> float:
        return 10 + (HEIGHT - BOTTOM - 10) * (high - value) / (high - low)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11">']
    parts.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>')
    for tick in (low, (low + high) / 2, high):
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 110}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{10**tick:.3g}</text>')
    for step in (0, max(steps) / 2, max(steps)):
        parts.append(f'<text x="{x(step):.1f}" y="{HEIGHT - 18}" text-anchor="middle">{step:.0f}</text>')
    parts.append(f'<text x="{x(max(steps) / 2):.1f}" y="{HEIGHT - 4}" text-anchor="middle">step</text>')
    for colour, (name, curve) in zip(COLOURS, values.items(), strict=False):
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in zip(steps, curve, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="{WIDTH - 104}" y="{y(curve[-1]) + 4:.1f}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    for log, names in CURVES.items():
        with (LOGS / f"{log}.csv").open(newline="") as file:
            (LOGS / f"{log}.svg").write_text(svg(list(csv.DictReader(file)), names))


if __name__ == "__main__":
    main()
