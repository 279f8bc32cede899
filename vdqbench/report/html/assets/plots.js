// The view of all plots of a setting.

function plotsView() {
  if (!DATA.settings.length) return [el("p", { class: "quiet" }, "No cell is done yet.")];
  const host = el("div");
  const state = { setting: DATA.settings[0], score: null };
  const controls = el("div", { class: "controls sticky" });

  function scoresOf(setting) {
    const keys = new Set(setting.cells);
    const found = new Set([...setting.tradeoffs.map((one) => one.score.name), ...setting.curves.map((one) => one.score.name)]);
    for (const cell of DATA.cells) if (keys.has(cell.id)) for (const name of Object.keys(cell.scores)) if (SCORES.get(name).quality) found.add(name);
    return DATA.scores.filter((score) => found.has(score.name) && score.quality);
  }

  function open() {
    const scores = scoresOf(state.setting);
    if (!scores.some((score) => score.name === state.score)) state.score = scores[0]?.name ?? null;
    const settings = choice("Setting", DATA.settings.map((one) => [one.key, one.label]), state.setting.key, (key) => { state.setting = SETTINGS.get(key); open(); });
    const score = choice("Score", scores.map((one) => [one.name, one.label + arrow(one)]), state.score, (name) => { state.score = name; draw(); });
    controls.replaceChildren(settings, score);
    draw();
  }

  function draw() {
    const { setting, score } = state;
    const tradeoffs = setting.tradeoffs.filter((one) => one.score.name === score);
    const curves = setting.curves.filter((one) => one.score.name === score);
    const plots = [...tradeoffs.map((one) => tradeoffPlot(setting, one)), ...curves.map((one) => curvePlot(setting, one))];
    const holes = missing(setting, tradeoffs, curves);
    host.replaceChildren(
      el("div", { class: "plots" }, plots),
      holes.length ? el("ul", { class: "holes" }, holes.map((text) => el("li", {}, text))) : "",
      el("div", { class: "maps" }, maps(setting)),
    );
  }

  open();
  return [controls, host];
}

// What is not drawn, and why.
function missing(setting, tradeoffs, curves) {
  const has = (name) => tradeoffs.some((one) => one.cost.name === name);
  const kind = (name) => curves.some((one) => one.kind === name);
  return [
    has("weight_size") ? null : "Score against size: fewer than two cells have both (metric system).",
    has("tbops") ? null : "Score against bit operations: fewer than two cells have both (metric system).",
    has("seconds_per_step") ? null : "Score against latency: it is only measured with integer kernels, and no cell here has such a measurement; kernel=sim says nothing about speed.",
    kind("bits") ? null : "Score by bit-width: no method has this score at two bit-widths.",
    kind("ranges") ? null : "Score by number of time ranges: no cells differ in it alone.",
    kind("threshold") ? null : "Score by threshold of bit switching: no cells differ in it alone.",
  ].filter(Boolean);
}

// Maps belong to a cell or a calibration, so each kind has a choice of its own.
function maps(setting) {
  const cells = setting.cells.map((key) => CELLS.get(key));
  const calibrations = new Set(cells.flatMap((cell) => cell.calibrations));
  const sections = [
    chooser("Calibration", DATA.activations.filter((one) => calibrations.has(one.key)), (one) => one.label, activationMap),
    chooser("Cell", cells.filter((cell) => cell.sqnr), (cell) => cell.label, sqnrMap),
    chooser("Cell", cells.filter((cell) => cell.pattern), (cell) => cell.label, patternMap),
  ];
  return sections.filter(Boolean);
}

function chooser(label, items, name, make) {
  if (!items.length) return null;
  const host = el("div", {}, make(items[0]));
  const select = items.length > 1 ? el("div", { class: "controls" }, choice(label, items.map((item, i) => [String(i), name(item)]), "0", (i) => host.replaceChildren(make(items[Number(i)])))) : null;
  return el("section", {}, select, host);
}
