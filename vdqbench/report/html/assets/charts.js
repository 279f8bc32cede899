// Which plots there are of a setting and a score: cost against quality, and curves along bits, time ranges and thresholds.

function pointText(point, lines) {
  return [CELLS.get(point.cell).label, ...lines].join("\n");
}

function withError(point, digits) {
  return number(point.y, digits) + (point.se === null ? "" : ` ± ${number(point.se, digits)}`);
}

// Looks by method and options, the same in all plots of a setting.
function looks(setting) {
  const names = [...new Set(setting.cells.map((key) => CELLS.get(key).family))];
  return new Map(names.map((name, i) => [name, look(i)]));
}

function tradeoffPlot(setting, tradeoff) {
  const score = SCORES.get(tradeoff.score.name);
  const styles = looks(setting);
  const best = new Set(tradeoff.front);
  const digits = SCORES.get(tradeoff.cost.name)?.digits ?? 3;
  const groups = new Map();
  for (const point of tradeoff.points) {
    const cell = CELLS.get(point.cell);
    const on = best.has(point.cell);
    const lines = [
      `${tradeoff.score.label} ${withError(point, score.digits)}`,
      `${tradeoff.cost.label} ${number(point.x, digits)}`,
      on ? "on the Pareto front" : "not on the Pareto front",
    ];
    const made = { ...point, text: pointText(point, lines), strong: on, mark: on ? (cell.bits === "fp" ? cell.method : `${cell.method} ${cell.bits}`) : null };
    groups.set(cell.family, [...(groups.get(cell.family) ?? []), made]);
  }
  const where = tradeoff.machine ? `Measured on ${tradeoff.machine}. ` : "Computed, not measured. ";
  const rows = [...tradeoff.points]
    .sort((a, b) => a.x - b.x)
    .map((point) => [CELLS.get(point.cell).label, number(point.x, digits), number(point.y, score.digits), point.se === null ? "–" : number(point.se, score.digits), best.has(point.cell) ? "yes" : "no"]);
  return plot({
    name: `tradeoff-${tradeoff.cost.name}`,
    title: `${tradeoff.score.label}${arrow(score)} against ${tradeoff.cost.label}`,
    note: `${where}Filled: on the Pareto front, no cell is better in one and at least as good in the other.`,
    x: { label: tradeoff.cost.label },
    y: { label: tradeoff.score.label },
    series: [...groups].map(([name, points]) => ({ label: name, look: styles.get(name), points, joined: false })),
    stair: tradeoff.front.map((key) => tradeoff.points.find((point) => point.cell === key)).map((point) => [point.x, point.y]),
    table: { head: ["cell", tradeoff.cost.label, tradeoff.score.label, "± standard error", "on the front"], rows, align: "lrrrl" },
  });
}

const CURVE_TITLES = {
  bits: "by bit-width",
  ranges: "by number of time ranges",
  threshold: "by threshold of bit switching",
};

function curvePlot(setting, curves) {
  const score = SCORES.get(curves.score.name);
  const styles = looks(setting);
  const place = (x) => (curves.ticks.length ? curves.ticks[x] : brief(x));
  const decided = curves.kind === "threshold" ? SCORES.get("activation_bits") : null;
  const width = (point) => number(CELLS.get(point.cell).scores.activation_bits?.mean, decided.digits);
  const series = curves.lines.map((line, i) => ({
    label: line.label,
    look: curves.kind === "bits" ? styles.get(line.label) ?? look(i) : look(i),
    joined: true,
    points: line.points.map((point) => ({
      ...point,
      text: pointText(point, [`${curves.kind === "bits" ? "bits" : curves.x} ${place(point.x)}`, `${curves.score.label} ${withError(point, score.digits)}`, ...(decided ? [`${decided.label} ${width(point)} on average`] : [])]),
    })),
  }));
  const rows = curves.lines.flatMap((line) =>
    line.points.map((point) => [line.label, place(point.x), number(point.y, score.digits), point.se === null ? "–" : number(point.se, score.digits), ...(decided ? [width(point)] : [])]),
  );
  return plot({
    name: curves.kind,
    title: `${curves.score.label}${arrow(score)} ${CURVE_TITLES[curves.kind]}`,
    note: "Bars are ± one standard error over prompts, where there are several.",
    x: { label: curves.x, ticks: curves.ticks.length ? curves.ticks : null },
    y: { label: curves.score.label },
    series,
    reference: curves.reference === null ? null : { value: curves.reference, label: "full precision" },
    table: { head: ["series", curves.x, curves.score.label, "± standard error", ...(decided ? [decided.label] : [])], rows, align: "lrrrr" },
  });
}
