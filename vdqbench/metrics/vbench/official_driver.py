"""Runs inside the environment of the official VBench, not in this one: does what a request in JSON says and writes the answer.

It is handed to that environment's Python as text, with the path of the request as its argument; it imports nothing of this package.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(request_path: str) -> None:
    """Evaluate; the answer is the package's `{dimension: [mean, [{"video_path": ..., "video_results": ...}, ...]]}`."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))

    import torch
    import vbench

    full_info = request["full_info"] or str(Path(vbench.__file__).parent / "VBench_full_info.json")
    bench = vbench.VBench(torch.device(request["device"]), full_info, request["output"])
    bench.evaluate(
        videos_path=request["videos"],
        name="vdqbench",
        prompt_list=request["prompts"] or [],
        dimension_list=request["dimensions"],
        mode=request["mode"],
        imaging_quality_preprocessing_mode="longer",
    )
    answer = Path(request["output"]) / "vdqbench_eval_results.json"
    Path(request["answer"]).write_text(answer.read_text(encoding="utf-8"), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
