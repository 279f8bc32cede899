"""The comparison workspace and the report on wandb as code: panels over the names that published runs have; needs wandb-workspaces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from vdqbench.track import content
from vdqbench.track.facts import Facts

COSTS = (("weight_size", "Weight size (MB)"), ("tbops", "TBOPs"), ("seconds_per_step", "Seconds per step"))
"""Scores that quality is set against."""
OPEN = 5
"""Sections of the workspace that are unfolded at first."""
WIDE = ("Tables", "Videos", "Runs compared")
"""Sections of the report with panels as wide as the page."""
TEXT = (
    "Every run is one cell: a model, a method, bits, prompts, a sampler and seeds. A score stands with its standard error over prompts "
    "(/stderr), its paired difference to full precision (/delta_fp) and, on a paper's own model, its difference to the printed number "
    "(/delta_paper). Minis are small models of a domain of their own: compare orders with a paper's, not numbers."
)
METHOD, BITS = wr.Config("cell.method"), wr.Config("cell.bits")


CURVES = (
    ("step", "curve/sqnr", "SQNR by step (dB)"),
    ("step", "curve/activation_bits", "Activation bits by step"),
    ("step", "curve/computed", "Computed steps"),
    ("layer", "layers/sqnr", "SQNR by layer (dB)"),
    ("layer", "layers/least_sqnr", "Least SQNR by layer (dB)"),
)
"""Axis, name and title of what is drawn as a line for each run."""


@dataclass(frozen=True)
class Score:
    """A score of the runs: its name, label, and direction (None: neither)."""

    name: str
    label: str
    higher_is_better: bool | None = None


@dataclass(frozen=True)
class Subject:
    """What the panels are about.

    Attributes:
        scores: those shown; costs: what they are set against.
        names: everything that some run has in its summary or history; None if no run is known.
        models: of the runs; reference: the run id of full precision, if all runs have the same.
    """

    scores: tuple[Score, ...]
    names: frozenset[str] | None = None
    models: tuple[str, ...] = ()
    reference: str | None = None

    @classmethod
    def of(cls, facts: Sequence[Facts], only: Sequence[str] = ()) -> Subject:
        """What the records have; `only` some of the scores, in that order."""
        records = [each.record for each in facts]
        found: dict[str, Score] = {}
        for name, entry in (score for record in records for score in record.scores.items()):
            if entry.get("metric") != "system" and entry.get("higher_is_better") is not None:
                found.setdefault(name, Score(name, str(entry.get("label") or name), bool(entry["higher_is_better"])))
        names = {name for each in facts for name in content.summary(each)}
        names |= {name for record in records for row in content.by_step(record) for name in row}
        names |= {"layers/sqnr", "layers/least_sqnr"} if any(content.by_layer(record)[1] for record in records) else set()
        references = {str(record.keys["reference"]) for record in records if record.keys.get("reference")}
        return cls(
            tuple(found.get(name, Score(name, name)) for name in only) or tuple(found.values()),
            frozenset(names) if records else None,
            tuple(sorted({str(record.cell["model"]) for record in records})),
            references.pop() if len(references) == 1 else None,
        )

    def has(self, name: str) -> bool:
        """Whether some run has this, as far as any run is known."""
        return self.names is None or name in self.names

    @property
    def costs(self) -> list[tuple[str, str]]:
        return [(name, label) for name, label in COSTS if self.has(name)]


def by(subject: Subject, key: wr.Config, word: str) -> list[Any]:
    """A bar chart of each score, the runs grouped by method or by bits."""
    return [
        wr.BarPlot(title=f"{score.label} by {word}", metrics=[score.name], groupby=key, groupby_aggfunc="mean", groupby_rangefunc="minmax")
        for score in subject.scores
    ]


def pareto(subject: Subject) -> list[Any]:
    """Each score against each cost; the line is the best score up to that cost."""
    return [
        wr.ScatterPlot(
            title=f"{score.label} over {label}",
            x=wr.SummaryMetric(cost),
            y=wr.SummaryMetric(score.name),
            running_ymax=score.higher_is_better is True or None,
            running_ymin=score.higher_is_better is False or None,
        )
        for cost, label in subject.costs
        for score in subject.scores
    ]


def against_reference(subject: Subject) -> list[Any]:
    """The paired difference of each score to full precision, a bar for each run."""
    return [
        wr.BarPlot(title=f"{score.label}: difference to full precision", metrics=[f"{score.name}/delta_fp"])
        for score in subject.scores
        if subject.has(f"{score.name}/delta_fp")
    ]


def against_papers(subject: Subject) -> list[Any]:
    """Our number over the paper's, a point for each run: for minis, what counts is the order."""
    return [
        wr.ScatterPlot(
            title=f"{score.label}: ours over the paper's", x=wr.SummaryMetric(f"{score.name}/paper"), y=wr.SummaryMetric(score.name)
        )
        for score in subject.scores
        if subject.has(f"{score.name}/paper")
    ]


def videos() -> list[Any]:
    """A row for each prompt and a column for each run; and each run beside full precision."""
    return [
        wr.MediaBrowser(title="Videos by prompt", media_keys=["videos"], mode="grid", grid_x_axis="run", grid_y_axis="index"),
        wr.MediaBrowser(title="Full precision | run", media_keys=["grid"], mode="gallery", gallery_axis="run"),
    ]


def curves(subject: Subject) -> list[Any]:
    """Curves by step and by layer, a line for each run."""
    return [wr.LinePlot(title=title, x=axis, y=[name], title_x=axis) for axis, name, title in CURVES if subject.has(name)]


def comparer(subject: Subject) -> list[Any]:
    """What differs between runs, and bits, costs and scores as parallel coordinates."""
    columns = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(f"cell.{name}")) for name in ("weight", "activation")]
    columns += [wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(name), display_name=label) for name, label in subject.costs]
    columns += [wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(s.name), display_name=s.label) for s in subject.scores]
    return [wr.RunComparer(diff_only="split"), wr.ParallelCoordinatesPlot(title="Bits, costs, scores", columns=columns)]


def tables() -> list[Any]:
    """The finished tables, as pages, and their rows side by side."""
    return [
        wr.MediaBrowser(title="Table", media_keys=["page"], mode="gallery", gallery_axis="run"),
        wr.MediaBrowser(title="Rows side by side", media_keys=["sheets"], mode="gallery", gallery_axis="index"),
        wr.MediaBrowser(title="Rows side by side, playing", media_keys=["grids"], mode="gallery", gallery_axis="index"),
    ]


def sections(subject: Subject) -> dict[str, list[Any]]:
    """Panels of the workspace and of the report, by heading; those without any are left out."""
    every = {
        "Tables": tables(),
        "Scores by method": by(subject, METHOD, "method"),
        "Scores by bits": by(subject, BITS, "bits"),
        "Pareto": pareto(subject),
        "Against full precision": against_reference(subject),
        "Against the papers": against_papers(subject),
        "Videos": videos(),
        "Steps and layers": curves(subject),
        "Runs compared": comparer(subject),
    }
    return {heading: panels for heading, panels in every.items() if panels}


def workspace(subject: Subject, entity: str, project: str, group: str | None = None) -> ws.Workspace:
    """A view of a project: all sections, runs of the models (of one table or sweep with `group`), full precision as the baseline."""
    filters = [expr.Tags().isin(list(subject.models))] if subject.models else []
    filters += [expr.Tags().isin([group])] if group else []
    pinned = ["run:displayName", "config:cell.value.method", "config:cell.value.bits", *(f"summary:{s.name}" for s in subject.scores)]
    return ws.Workspace(
        entity=entity,
        project=project,
        name="vdqbench" + (f": {group}" if group else ""),
        auto_generate_panels=False,
        sections=[
            ws.Section(name=heading, panels=panels, is_open=i < OPEN, layout_settings=ws.SectionLayoutSettings(columns=3, rows=2))
            for i, (heading, panels) in enumerate(sections(subject).items())
        ],
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(*filters) if filters else "",
            order=[expr.Ordering(expr.Metric("Name"), ascending=True)],
            pinned_columns=pinned,
            baseline_run=subject.reference,
        ),
    )


def report(subject: Subject, entity: str, project: str, group: str | None = None) -> wr.Report:
    """The same panels as pages to read, tables first, over the runs of the report's own project."""
    blocks: list[Any] = [wr.P(TEXT), wr.TableOfContents()]
    for heading, panels in sections(subject).items():
        kinds = ["table"] if heading == "Tables" else ["cell", "reference"]
        filters = [expr.Metric("JobType").isin(kinds), *([expr.Tags().isin([group])] if group else [])]
        across, high = (1, 12) if heading in WIDE else (3, 8)
        for i, panel in enumerate(panels):
            panel.layout = wr.Layout(x=i % across * (24 // across), y=i // across * high, w=24 // across, h=high)
        blocks += [wr.H2(heading), wr.PanelGrid(runsets=[wr.Runset(name=", ".join(kinds), filters=expr.And(*filters))], panels=panels)]
    title = "Quantized video diffusion" + (f": {group}" if group else "")
    return wr.Report(project=project, entity=entity, title=title, description="made by vdqbench dashboard", blocks=blocks, width="fluid")


def to_json(made: ws.Workspace, written: wr.Report) -> str:
    """Both as the server stores them, made without it."""
    models = {"workspace": made._to_model(), "report": written._to_model()}
    plain = {name: model.model_dump(mode="json", by_alias=True, exclude_none=True) for name, model in models.items()}
    return json.dumps(plain, indent=1) + "\n"
