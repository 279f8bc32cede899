"""Weights & Biases: one run per cell, made from its finished record.

wandb works in a process of its own with a deadline: whatever it does to signals, environment or the network, and however
long it would wait at its exit, the bench goes on. Everything it writes stays below the run folder.
"""

from __future__ import annotations

import json
import netrc
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vdqbench.record import Record
from vdqbench.report.paired import over_prompts
from vdqbench.track import Published

MODES = ("auto", "online", "offline", "disabled")
SERVER = "https://api.wandb.ai"


def publish(record: Record, run_dir: Path, *, timeout: float = 180, mode: str = "auto", **options: Any) -> Published:
    """Publish a record with the options of `conf/tracker/wandb.yaml`; success, and where to or why not.

    Raises:
        ValueError: an unknown mode.
        OSError: the process cannot be started, or the run folder cannot be written.
    """
    if mode not in MODES:
        raise ValueError(f"tracker.mode={mode} must be one of {', '.join(MODES)}")
    mode = chosen_mode(mode, os.environ)
    if mode == "disabled":
        return Published(True, "wandb is disabled")
    run_dir.mkdir(parents=True, exist_ok=True)
    job = {"record": record.to_dict(), "run_dir": str(run_dir.resolve()), "mode": mode, **options}
    result = _in_process(job, timeout)
    if result.ok or mode != "online":
        return result
    kept = _in_process({**job, "mode": "offline"}, timeout)
    return Published(False, f"{result.reason}; " + (f"kept offline: {kept.reason}" if kept.ok else f"nor offline: {kept.reason}"))


def _in_process(job: dict[str, Any], timeout: float) -> Published:
    """Run `send` in a process of its own and end that process, and all it started, after `timeout` seconds."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "vdqbench.track.wandb"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(Path(job["run_dir"]), job["mode"]),
        text=True,
        start_new_session=True,
    )
    try:
        out, errors = process.communicate(json.dumps(job), timeout=timeout)
    except subprocess.TimeoutExpired:
        return Published(False, f"wandb was not done within tracker.timeout={timeout} s and was stopped")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    try:
        ok, reason = json.loads(out.splitlines()[-1])
    except (IndexError, ValueError):
        last = errors.strip().splitlines()[-1:] or ["no message"]
        return Published(False, f"wandb ended with exit code {process.returncode}: {last[0]}")
    return Published(bool(ok), str(reason))


def chosen_mode(mode: str, environment: Mapping[str, str]) -> str:
    """`auto` made definite: the user's WANDB_MODE if set, else online where there is a login for the server, else offline."""
    if mode != "auto":
        return mode
    if environment.get("WANDB_MODE") in ("online", "offline", "disabled"):
        return environment["WANDB_MODE"]
    return "online" if environment.get("WANDB_API_KEY") or _in_netrc(environment) else "offline"


def _in_netrc(environment: Mapping[str, str]) -> bool:
    host = urlsplit(environment.get("WANDB_BASE_URL", SERVER)).hostname or ""
    home = Path(environment.get("HOME", "~")).expanduser()
    for path in (Path(environment["NETRC"]),) if "NETRC" in environment else (home / ".netrc", home / "_netrc"):
        try:
            if netrc.netrc(str(path)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _environment(run_dir: Path, mode: str) -> dict[str, str]:
    """The environment of the process: wandb's own folders below the run folder, and this package importable.

    Online, the user's configuration folder stays in use: it may name the server.
    """
    kinds = ("DATA", "CACHE", "ARTIFACT") + (() if mode == "online" else ("CONFIG",))
    own = {f"WANDB_{kind}_DIR": str(run_dir / "wandb" / kind.lower()) for kind in kinds}
    package = str(Path(__file__).resolve().parents[2])
    inherited = {key: value for key, value in os.environ.items() if key not in ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_DIR")}
    path = os.pathsep.join(part for part in (package, os.environ.get("PYTHONPATH", "")) if part)
    return {**inherited, **own, "PYTHONPATH": path, "WANDB_SILENT": "true"}


def config(record: Record) -> dict[str, Any]:
    """Config of the run: the nested configuration and, flat, the cell, by which runs are grouped and filtered."""
    return {**record.config, "cell": record.cell, "keys": record.keys, "git": record.git, "version": record.version}


def summary(record: Record) -> dict[str, Any]:
    """Summary of the run: `<score>` its mean, `<score>/se` its standard error over prompts, `<score>/n`; state, reason, costs."""
    values: dict[str, Any] = {"state": record.state, "reason": record.reason, "peak_memory_bytes": record.peak_memory_bytes}
    for name, score in record.scores.items():
        own = over_prompts(record.by_sample(name))
        values |= {name: score["mean"], f"{name}/n": score.get("n"), f"{name}/se": own.se if own else None}
    values |= {f"seconds/{stage}": seconds for stage, seconds in record.timings.items()}
    return {name: value for name, value in values.items() if value is not None}


def per_video(record: Record) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the table of videos: prompt_id, prompt, seed, every score that has a value per video."""
    scores = {name: record.by_sample(name) for name in record.scores}
    scores = {name: values for name, values in scores.items() if values}
    rows = [
        [v["prompt_id"], v["prompt"], v["seed"], *(values.get((str(v["prompt_id"]), int(v["seed"]))) for values in scores.values())]
        for v in record.videos
    ]
    return ["prompt_id", "prompt", "seed", *scores], rows


def send(
    record: Record,
    run_dir: Path,
    mode: str,
    project: str = "vdqbench",
    entity: str | None = None,
    group: str | None = None,
    max_videos: int = 16,
    init_timeout: float = 20,
) -> Published:
    """Make the run in this process.

    Raises:
        Exception: whatever wandb raises, such as for a server that does not answer within `init_timeout` seconds.
    """
    import wandb

    run = wandb.init(
        project=project,
        entity=entity,
        group=group,
        job_type="cell",
        id=record.key,
        name=record.name,
        resume="allow" if mode == "online" else None,
        tags=[str(record.cell[tag]) for tag in ("model", "method", "bits", "kernel") if record.cell.get(tag)],
        config=config(record),
        dir=run_dir,
        mode=mode,  # type: ignore[arg-type]
        settings=wandb.Settings(
            silent=True, console="off", init_timeout=init_timeout, disable_git=True, disable_code=True, x_disable_stats=True
        ),
    )
    exit_code = 1
    try:
        run.summary.update(summary(record))
        columns, rows = per_video(record)
        if rows:
            files = [run_dir / v["mp4"] if v.get("mp4") else None for v in record.videos[:max_videos]]
            videos = [
                wandb.Video(str(f), caption=v["prompt"], format="mp4") if f and f.is_file() else None
                for f, v in zip(files, record.videos, strict=False)
            ]
            videos += [None] * (len(rows) - len(videos))
            table = wandb.Table([*columns, "video"], [[*row, video] for row, video in zip(rows, videos, strict=True)])
            run.log({"videos": [video for video in videos if video], "per_video": table})
        exit_code = int(record.state == "failed")
    finally:
        run.finish(exit_code=exit_code)
    return Published(True, "sent" if mode == "online" else f"`wandb sync {run_dir}/wandb/offline-run-*` sends it")


def _main() -> None:
    """Read a job from standard input, write [success, reason] as the last line of standard output."""
    job = json.load(sys.stdin)
    try:
        result = send(Record.from_dict(job.pop("record")), Path(job.pop("run_dir")), **job)
    except Exception as error:
        result = Published(False, f"{type(error).__name__}: {' '.join(str(error).split())}")
    sys.stdout.write("\n" + json.dumps(result) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main()
