// A plot of cells: axes, series with symbols, error bars, tooltips, movement by arrow keys, and the same numbers as a table.

const PLOT_HEIGHT = 340;
const MARGIN = { top: 14, right: 18, bottom: 46, left: 62 };

// spec: {title, note, x: {label, ticks?}, y: {label}, series: [{label, joined, points: [{key, x, y, se, text, mark, strong}]}],
//        stair?: [[x, y]], reference?: {value, label}, table: {head, rows, align}}
function plot(spec) {
  const canvas = el("div", { class: "canvas" });
  drawn(canvas, (width) => canvas.replaceChildren(plotSvg(spec, width)));
  const legend = spec.series.map((series) => el("li", {}, swatch(series.look), series.label));
  return el(
    "figure",
    { class: "plot", "data-plot": spec.name },
    el("figcaption", {}, el("h3", {}, spec.title), spec.note ? el("p", { class: "quiet" }, spec.note) : null),
    canvas,
    el("ul", { class: "legend", "aria-label": `Series of ${spec.title}` }, legend),
    lazyDetails("These numbers as a table", () => plainTable(spec.title, spec.table.head, spec.table.rows, spec.table.align)),
  );
}

function swatch(style) {
  const mark = svg("path", { d: style.symbol(4.5), transform: "translate(7 7)", class: "mark", style: null });
  mark.style.setProperty("--own", style.colour);
  return svg("svg", { width: 14, height: 14, "aria-hidden": "true" }, mark);
}

function plotSvg(spec, width) {
  const points = spec.series.flatMap((series) => series.points.map((point) => ({ ...point, look: series.look, series: series.label })));
  const right = width - MARGIN.right;
  const bottom = PLOT_HEIGHT - MARGIN.bottom;
  const x = xScale(spec, points, right);
  const spread = points.flatMap((point) => [point.y - (point.se ?? 0), point.y + (point.se ?? 0)]);
  if (spec.reference) spread.push(spec.reference.value);
  const y = linear(...padded(spread), bottom, MARGIN.top);
  const node = svg("svg", {
    width,
    height: PLOT_HEIGHT,
    role: "group",
    "aria-label": `${spec.title}. ${plural(points.length, "point", "points")}; arrow keys move between them, Enter opens a cell.`,
  });
  node.append(axes(spec, x, y, right, bottom, width));
  if (spec.reference) node.append(referenceLine(spec.reference, y, right));
  if (spec.stair) node.append(svg("path", { d: stairs(spec.stair, x, y, right), class: "stair" }));
  for (const series of spec.series.filter((one) => one.joined && one.points.length > 1)) {
    const path = svg("path", { d: `M${series.points.map((point) => `${x(point.x)},${y(point.y)}`).join("L")}`, class: "joined" });
    path.style.setProperty("--own", series.look.colour);
    node.append(path);
  }
  const marks = points.map((point) => pointMark(point, x(point.x), y));
  node.append(...marks, pointTexts(points, x, y, right));
  rove(node, marks);
  return node;
}

function xScale(spec, points, right) {
  const values = points.map((point) => point.x);
  if (spec.x.ticks) return linear(-0.4, spec.x.ticks.length - 0.6, MARGIN.left, right);
  return wide(values) ? logarithmic(...paddedLog(values), MARGIN.left, right) : linear(...padded(values), MARGIN.left, right);
}

function axes(spec, x, y, right, bottom, width) {
  const group = svg("g", { class: "axes", "aria-hidden": "true" });
  for (const tick of y.ticks(5)) {
    group.append(svg("line", { x1: MARGIN.left, x2: right, y1: y(tick), y2: y(tick), class: "gridline" }));
    group.append(svg("text", { x: MARGIN.left - 8, y: y(tick), dy: "0.32em", "text-anchor": "end" }, brief(tick)));
  }
  const named = spec.x.ticks ? spec.x.ticks.map((text, i) => [i, text]) : x.ticks(Math.max(3, width / 110)).map((tick) => [tick, brief(tick)]);
  const crowded = spec.x.ticks && ((right - MARGIN.left) / named.length) < 7 * Math.max(...named.map(([, text]) => text.length));
  for (const [tick, text] of named) {
    const at = x(tick);
    group.append(svg("line", { x1: at, x2: at, y1: bottom, y2: bottom + 4, class: "tick" }));
    const turned = crowded ? { "text-anchor": "end", transform: `rotate(-35 ${at} ${bottom + 14})` } : { "text-anchor": "middle" };
    group.append(svg("text", { x: at, y: bottom + (crowded ? 14 : 17), ...turned }, text));
  }
  group.append(svg("line", { x1: MARGIN.left, x2: right, y1: bottom, y2: bottom, class: "axis" }));
  group.append(svg("text", { x: (MARGIN.left + right) / 2, y: PLOT_HEIGHT - 6, "text-anchor": "middle", class: "title" }, spec.x.label + (x.log ? ", logarithmic" : "")));
  const turn = `rotate(-90 14 ${(MARGIN.top + bottom) / 2})`;
  group.append(svg("text", { x: 14, y: (MARGIN.top + bottom) / 2, "text-anchor": "middle", transform: turn, class: "title" }, spec.y.label));
  return group;
}

function referenceLine(reference, y, right) {
  const at = y(reference.value);
  return svg(
    "g",
    { class: "reference", "aria-hidden": "true" },
    svg("line", { x1: MARGIN.left, x2: right, y1: at, y2: at }),
    svg("text", { x: right, y: at - 5, "text-anchor": "end" }, reference.label),
  );
}

// What can be had at a cost: the best score of all cells that cost no more.
function stairs(corners, x, y, right) {
  const parts = corners.map(([cost, score], i) => (i ? `H${x(cost)}V${y(score)}` : `M${x(cost)},${y(score)}`));
  return `${parts.join("")}H${right}`;
}

function pointMark(point, at, y) {
  const parts = [];
  if (point.se) parts.push(svg("line", { x1: 0, x2: 0, y1: y(point.y - point.se) - y(point.y), y2: y(point.y + point.se) - y(point.y), class: "error" }));
  parts.push(svg("circle", { r: 11, class: "target" }));
  parts.push(svg("path", { d: point.look.symbol(5), class: point.strong === false ? "mark hollow" : "mark" }));
  const link = svg("a", { href: cellAddress(point.cell), "aria-label": point.text.replaceAll("\n", "; "), class: "point", tabindex: -1, transform: `translate(${at} ${y(point.y)})` }, parts);
  link.style.setProperty("--own", point.look.colour);
  const show = () => showTip(point.text, link.getBoundingClientRect());
  for (const event of ["focus", "mouseenter"]) link.addEventListener(event, show);
  for (const event of ["blur", "mouseleave"]) link.addEventListener(event, hideTip);
  return link;
}

// Short names beside the points that have one, where there is room.
function pointTexts(points, x, y, right) {
  const group = svg("g", { class: "names", "aria-hidden": "true" });
  const taken = points.map((point) => [x(point.x) - 6, y(point.y) - 6, x(point.x) + 6, y(point.y) + 6]);
  for (const point of points.filter((one) => one.mark)) {
    const [length, px, py] = [point.mark.length * 6.2, x(point.x), y(point.y)];
    const places = [
      [px + 9, py - 6, "start"],
      [px + 9, py + 14, "start"],
      [px - 9, py - 6, "end"],
      [px - 9, py + 14, "end"],
    ];
    for (const [left, base, anchor] of places) {
      const from = anchor === "start" ? left : left - length;
      const box = [from, base - 10, from + length, base + 3];
      const free = from > MARGIN.left && from + length < right && box[1] > 0 && box[3] < PLOT_HEIGHT - MARGIN.bottom;
      if (!free || taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])) continue;
      taken.push(box);
      group.append(svg("text", { x: left, y: base, "text-anchor": anchor }, point.mark));
      break;
    }
  }
  return group;
}

// One stop of the Tab key for all points; arrow keys go from one to the next, by x.
function rove(node, marks) {
  if (!marks.length) return;
  const order = marks.map((mark) => [mark, mark.getAttribute("transform").match(/-?[\d.]+/g).map(Number)]).sort(([, a], [, b]) => a[0] - b[0] || b[1] - a[1]).map(([mark]) => mark);
  order[0].setAttribute("tabindex", 0);
  node.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const to = { Home: 0, End: order.length - 1 }[event.key] ?? (step ? order.indexOf(document.activeElement) + step : null);
    if (to === null) return;
    event.preventDefault();
    const next = order[Math.min(order.length - 1, Math.max(0, to))];
    for (const mark of order) mark.setAttribute("tabindex", mark === next ? 0 : -1);
    next.focus();
  });
}
