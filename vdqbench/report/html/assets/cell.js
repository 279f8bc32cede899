// The page of one cell.

function cellView(cell) {
  const setting = SETTINGS.get(cell.setting);
  return [
    el("p", { class: "crumbs" }, el("a", { href: "#cells" }, "All cells")),
    el("h2", {}, cell.label, " ", stateChip(cell), cell.mini ? chip("mini", "mini") : null),
    el("p", { class: "quiet" }, [cell.model, cell.bits, cell.prompts && `${cell.prompts}, n=${cell.n}`, cell.sampler, cell.kernel && `kernel ${cell.kernel}`].filter(Boolean).join(" · ")),
    cell.notes.map((note) => el("p", { class: "notice" }, note)),
    cell.command ? el("p", {}, el("code", { class: "command" }, cell.command)) : null,
    cell.state === "done" ? null : why(cell),
    section("Scores", scoreTable(cell)),
    section("Videos", setting && cell.videos.length ? [player(setting, [cell.id], true), el("p", { class: "quiet" }, videosNote())] : null),
    section("Scores of each video", videoTable(cell)),
    section("Bits and layers", [cell.pattern ? patternMap(cell) : null, cell.sqnr ? sqnrMap(cell) : null].filter(Boolean)),
    section("Size and operations, computed", cell.account.length ? facts(cell.account) : null),
    section("Run", cell.run.length ? facts(cell.run) : null),
    section("Provenance", facts(cell.provenance)),
    section("Protocols", cell.protocols.length ? facts(cell.protocols) : null),
    section("Resolved configuration", cell.config ? el("pre", { tabindex: 0, role: "region", "aria-label": "Resolved configuration" }, cell.config) : null),
  ];
}

function section(title, content) {
  if (content === null || (Array.isArray(content) && !content.length)) return null;
  const id = uid("section");
  return el("section", { "aria-labelledby": id }, el("h3", { id }, title), content);
}

function why(cell) {
  return el(
    "div",
    { class: `notice ${cell.state}` },
    el("p", {}, el("strong", {}, cell.state === "failed" ? "It failed: " : "It was skipped: "), cell.reason ?? "no reason was recorded"),
    cell.traceback ? details("Traceback", el("pre", { tabindex: 0, role: "region", "aria-label": "Traceback" }, cell.traceback)) : null,
  );
}

function scoreTable(cell) {
  const names = Object.keys(cell.scores);
  if (!names.length) return null;
  const digits = (name) => SCORES.get(name).digits;
  const entry = (name) => cell.scores[name];
  const apart = (name) => entry(name).apart;
  const interval = { label: "95 % interval", numeric: true, value: (name) => real(entry(name).interval?.[0] ?? null), cell: (name) => (entry(name).interval ? entry(name).interval.map((bound) => number(bound, digits(name))).join(" … ") : "–") };
  return grid({
    caption: cell.reference ? "Differences are paired: to full precision, same prompts and noise; * more than two standard errors" : "± is one standard error over prompts",
    label: `Scores of ${cell.label}`,
    rows: names,
    columns: [
      { label: "score", header: true, value: (name) => SCORES.get(name).label, cell: (name) => SCORES.get(name).label + arrow(SCORES.get(name)) },
      { label: "mean", numeric: true, value: (name) => real(entry(name).mean), cell: (name) => entry(name).why ? el("span", { class: "quiet" }, `– ${entry(name).why}`) : number(entry(name).mean, digits(name)) },
      { label: "±", numeric: true, value: (name) => entry(name).se, cell: (name) => number(entry(name).se, digits(name)) },
      { label: "n", numeric: true, value: (name) => entry(name).n, cell: (name) => String(entry(name).n ?? "–") },
      { label: "to full precision", numeric: true, value: (name) => apart(name)?.mean, cell: (name) => (apart(name) ? signed(apart(name).mean, digits(name)) + (apart(name).significant ? "*" : "") : "–") },
      { label: "±", title: "standard error of the difference", numeric: true, value: (name) => apart(name)?.se, cell: (name) => number(apart(name)?.se, digits(name)) },
      ...(names.some((name) => entry(name).interval) ? [interval] : []),
    ],
  }).node;
}

function videoTable(cell) {
  if (!cell.videos.length) return null;
  const names = Object.keys(cell.videos[0].values);
  return grid({
    caption: `${plural(cell.videos.length, "video", "videos")}`,
    label: `Scores of each video of ${cell.label}`,
    rows: cell.videos,
    columns: [
      { label: "prompt", header: true, value: (video) => video.id, cell: (video) => [el("span", { class: "quiet" }, `${video.id} `), video.prompt] },
      { label: "seed", numeric: true, value: (video) => video.seed, cell: (video) => String(video.seed) },
      ...names.map((name) => ({
        label: SCORES.get(name).label + arrow(SCORES.get(name)),
        numeric: true,
        better: SCORES.get(name).better,
        value: (video) => real(video.values[name]),
        cell: (video) => number(video.values[name], SCORES.get(name).digits),
      })),
    ],
  }).node;
}
