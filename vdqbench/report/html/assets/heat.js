// Maps of layers and steps, and of what was decided at each step of each video.

// spec: {title, note, unit, modes: [{name, text, value(row, column), log}], rows, roles, values, steps}
function heatMap(spec) {
  const state = { mode: spec.modes[0].name, order: "model", row: 0, column: 0 };
  const canvas = el("div", { class: "canvas" });
  const readout = el("p", { class: "readout", "aria-live": "polite" }, "Point at a cell, or move with the arrow keys, to read it.");
  let width = 0;
  const again = () => width && canvas.replaceChildren(heatSvg(spec, state, width, readout));
  drawn(canvas, (now) => {
    width = now;
    again();
  });
  const controls = [];
  if (spec.modes.length > 1) {
    controls.push(choice("Show", spec.modes.map((mode) => [mode.name, mode.text]), state.mode, (value) => { state.mode = value; again(); }));
  }
  if (spec.roles.some(Boolean)) {
    controls.push(choice("Order", [["model", "as in the model"], ["role", "by role"]], state.order, (value) => { state.order = value; again(); }));
  }
  return el(
    "figure",
    { class: "plot heat", "data-plot": spec.name },
    el("figcaption", {}, el("h3", {}, spec.title), spec.note ? el("p", { class: "quiet" }, spec.note) : null),
    controls.length ? el("div", { class: "controls" }, controls) : null,
    canvas,
    readout,
    lazyDetails("These numbers as a table", () => heatTable(spec)),
  );
}

function heatTable(spec) {
  const head = ["layer", "role", ...Array.from({ length: spec.steps }, (_, k) => `step ${k}`)];
  const rows = spec.rows.map((name, i) => [name, spec.roles[i], ...spec.values[i].map((value) => (value === null ? "–" : brief(real(value))))]);
  return plainTable(spec.title, head, rows, `ll${"r".repeat(spec.steps)}`);
}

// Rows in the chosen order with the name of the group that each belongs to.
function heatOrder(spec, order) {
  const rows = spec.rows.map((name, i) => ({ i, name, group: order === "role" ? spec.roles[i] || "no role" : (name.match(/^\D*\d+/) ?? [name])[0] }));
  if (order !== "role") return rows;
  const first = new Map(rows.map((row) => [row.group, row.i]).reverse());
  return rows.sort((a, b) => first.get(a.group) - first.get(b.group) || a.i - b.i);
}

function heatSvg(spec, state, width, readout) {
  const mode = spec.modes.find((one) => one.name === state.mode);
  const order = heatOrder(spec, state.order);
  const left = Math.min(190, Math.max(70, width * 0.22));
  const size = Math.max(3, Math.min(16, Math.floor(560 / order.length)));
  const across = Math.max(2, Math.floor((width - left - 12) / Math.max(1, spec.steps)));
  const [top, wideAcross] = [6, across * spec.steps];
  const bottom = top + size * order.length;
  const known = order.flatMap(({ i }) => spec.values[i].map((_, k) => mode.value(i, k))).filter((value) => value !== null && Number.isFinite(value) && (!mode.log || value > 0));
  if (!known.length) return el("p", { class: "quiet" }, "There is no value that this map could show.");
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const at = mode.log ? logarithmic(low, high, 0, 1) : linear(low, high, 0, 1);
  const colour = (value) => (value === null || !Number.isFinite(value) || (mode.log && value <= 0) ? "var(--hole)" : shade(high > low ? at(value) : 0.5));
  const cells = svg("g", { "shape-rendering": "crispEdges", "aria-hidden": "true" });
  order.forEach(({ i }, row) => {
    spec.values[i].forEach((_, k) => {
      const cell = svg("rect", { x: left + k * across, y: top + row * size, width: across, height: size });
      cell.style.fill = colour(mode.value(i, k));
      cells.append(cell);
    });
  });
  const cursor = svg("rect", { width: across, height: size, class: "cursor", visibility: "hidden" });
  const node = svg(
    "svg",
    {
      width,
      height: bottom + 78,
      tabindex: 0,
      role: "application",
      "aria-label": `${spec.title}, ${plural(order.length, "row", "rows")} by ${plural(spec.steps, "step", "steps")}, from ${brief(low)} to ${brief(high)} ${mode.unit}. Arrow keys read single cells; a table follows.`,
    },
    cells,
    heatNames(order, left, top, size),
    stepTicks(spec.steps, left, across, bottom),
    scaleBar(at, low, high, mode, left, bottom + 44, Math.min(280, wideAcross)),
    cursor,
  );
  const read = (row, column) => {
    state.row = Math.min(order.length - 1, Math.max(0, row));
    state.column = Math.min(spec.steps - 1, Math.max(0, column));
    const { i, name } = order[state.row];
    const value = mode.value(i, state.column);
    cursor.setAttribute("x", left + state.column * across);
    cursor.setAttribute("y", top + state.row * size);
    cursor.setAttribute("visibility", "visible");
    const role = spec.roles[i] ? `, ${spec.roles[i]}` : "";
    readout.textContent = `${name}${role}, step ${state.column}: ${value === null ? "no value" : `${brief(value)} ${mode.unit}`}`;
  };
  node.addEventListener("mousemove", (event) => {
    const box = node.getBoundingClientRect();
    const [column, row] = [Math.floor((event.clientX - box.left - left) / across), Math.floor((event.clientY - box.top - top) / size)];
    if (column >= 0 && column < spec.steps && row >= 0 && row < order.length) read(row, column);
  });
  node.addEventListener("keydown", (event) => {
    const by = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!by) return;
    event.preventDefault();
    const fresh = cursor.getAttribute("visibility") === "hidden";
    read(state.row + (fresh ? 0 : by[0]), state.column + (fresh ? 0 : by[1]));
  });
  return node;
}

// The name of a group at its first row; every row's name where there is room.
function heatNames(order, left, top, size) {
  const group = svg("g", { class: "axes", "aria-hidden": "true" });
  const most = Math.floor((left - 12) / 6.1);
  const fit = (text) => (text.length > most ? `…${text.slice(1 - most)}` : text);
  let lastText = -99;
  order.forEach((row, place) => {
    const starts = place === 0 || order[place - 1].group !== row.group;
    const y = top + place * size;
    if (starts && place) group.append(svg("line", { x1: left - 8, x2: left, y1: y, y2: y, class: "tick" }));
    const text = size >= 12 ? row.name : starts ? row.group : null;
    if (text === null || y - lastText < 11) return;
    lastText = y;
    group.append(svg("text", { x: left - 10, y: y + Math.max(size / 2, 5), dy: "0.32em", "text-anchor": "end" }, fit(text)));
  });
  return group;
}

function stepTicks(steps, left, across, bottom) {
  const group = svg("g", { class: "axes", "aria-hidden": "true" });
  const every = [1, 2, 5, 10, 20, 50, 100].find((n) => n * across >= 26) ?? steps;
  for (let k = 0; k < steps; k += every) group.append(svg("text", { x: left + (k + 0.5) * across, y: bottom + 14, "text-anchor": "middle" }, String(k)));
  group.append(svg("text", { x: left + (steps * across) / 2, y: bottom + 29, "text-anchor": "middle", class: "title" }, "step, the noisiest first"));
  return group;
}

function scaleBar(at, low, high, mode, left, y, width) {
  const group = svg("g", { class: "axes", "aria-hidden": "true" });
  const parts = 64;
  for (let i = 0; i < parts; i += 1) {
    const part = svg("rect", { x: left + (i * width) / parts, y, width: width / parts + 0.6, height: 9 });
    part.style.fill = shade(i / (parts - 1));
    group.append(part);
  }
  const ticks = high > low ? at.ticks(4) : [low];
  for (const tick of ticks) {
    const x = left + (high > low ? at(tick) : 0.5) * width;
    group.append(svg("line", { x1: x, x2: x, y1: y + 9, y2: y + 13, class: "tick" }), svg("text", { x, y: y + 24, "text-anchor": "middle" }, brief(tick)));
  }
  group.append(svg("text", { x: left + width + 14, y: y + 9 }, mode.unit));
  return group;
}

function sqnrMap(cell) {
  const values = cell.sqnr.values;
  return heatMap({
    name: "sqnr",
    title: `SQNR of each layer by step: ${cell.label}`,
    note: "Signal to quantization noise of a layer's output, given the input it has in full precision. Grey: not computed, or no signal.",
    modes: [{ name: "db", text: "dB", unit: "dB", log: false, value: (i, k) => real(values[i][k] ?? null) }],
    ...cell.sqnr,
  });
}

function activationMap(activation) {
  const values = activation.values.map((row) => row.map(real));
  const most = values.map((row) => Math.max(...row));
  return heatMap({
    name: "activation-range",
    title: "Activation range of each layer by step",
    note: `Largest |input| over prompts, guidance branches and channels, in full precision. ${activation.label}. Layers that read the same tensor are one row.`,
    modes: [
      { name: "absolute", text: "largest |x|", unit: "largest |x|", log: true, value: (i, k) => values[i][k] ?? null },
      { name: "relative", text: "relative to the layer's own largest", unit: "of the layer's own largest", log: false, value: (i, k) => (most[i] ? values[i][k] / most[i] : null) },
    ],
    ...activation,
  });
}

// What a schedule or a reuse of steps decided.
function patternMap(cell) {
  const { samples, bits, computed } = cell.pattern;
  const steps = Math.max(...(bits ?? computed).map((row) => row.length));
  const widths = bits ? [...new Set(bits.flat())].sort((a, b) => a - b) : [];
  const state = (row, k) => {
    if (computed && computed[row][k] === false) return "reused";
    return bits && bits[row][k] !== undefined ? `${bits[row][k]} bits` : "computed";
  };
  const kinds = [...new Set(samples.flatMap((_, row) => Array.from({ length: steps }, (_, k) => state(row, k))))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const fillOf = (kind) => (kind === "reused" ? "var(--hole)" : kind === "computed" ? "var(--series-1)" : shade(widths.length > 1 ? 0.2 + 0.65 * (widths.indexOf(parseInt(kind, 10)) / (widths.length - 1)) : 0.3));
  const canvas = el("div", { class: "canvas" });
  drawn(canvas, (width) => {
    const left = 130;
    const across = Math.max(4, Math.floor((width - left - 12) / steps));
    const node = svg("svg", { width, height: samples.length * 20 + 48, role: "img", "aria-label": `${cell.label}: ${patternWords(cell, steps)}` });
    samples.forEach((name, row) => {
      node.append(svg("text", { x: left - 10, y: row * 20 + 16, "text-anchor": "end", class: "label" }, name));
      for (let k = 0; k < steps; k += 1) {
        const box = svg("rect", { x: left + k * across + 0.5, y: row * 20 + 4, width: across - 1, height: 17, "data-state": state(row, k) });
        box.style.fill = fillOf(state(row, k));
        box.append(svg("title", {}, `${name}, step ${k}: ${state(row, k)}`));
        node.append(box);
      }
    });
    node.append(stepTicks(steps, left, across, samples.length * 20 + 4));
    canvas.replaceChildren(node);
  });
  const legend = kinds.map((kind) => {
    const box = svg("rect", { width: 12, height: 12, y: 1 });
    box.style.fill = fillOf(kind);
    return el("li", {}, svg("svg", { width: 14, height: 14, "aria-hidden": "true" }, box), kind);
  });
  const head = ["video", ...Array.from({ length: steps }, (_, k) => `step ${k}`)];
  const rows = samples.map((name, row) => [name, ...Array.from({ length: steps }, (_, k) => state(row, k))]);
  return el(
    "figure",
    { class: "plot", "data-plot": "pattern" },
    el("figcaption", {}, el("h3", {}, `What was decided at each step: ${cell.label}`), el("p", { class: "quiet" }, patternWords(cell, steps))),
    canvas,
    el("ul", { class: "legend" }, legend),
    lazyDetails("These steps as a table", () => plainTable(`Steps of ${cell.label}`, head, rows, `l${"r".repeat(steps)}`)),
  );
}

function patternWords(cell, steps) {
  const { samples, bits, computed } = cell.pattern;
  const parts = [`${plural(samples.length, "video", "videos")} of ${steps} steps`];
  if (bits) {
    const all = bits.flat();
    parts.push(`activation bits of the switched layers are ${brief(all.reduce((sum, width) => sum + width, 0) / all.length, 3)} on average`);
  }
  if (computed) parts.push(`${Math.round((100 * computed.flat().filter(Boolean).length) / computed.flat().length)} % of the steps were computed`);
  return `${parts.join("; ")}.`;
}
