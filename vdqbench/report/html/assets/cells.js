// The table of all cells, with filters and a choice of columns.

const SHOWN_SCORES = 8;

function stateChip(cell) {
  return cell.state === "done" ? el("span", { class: "quiet" }, "done") : chip(cell.state, cell.state);
}

function cellLink(cell) {
  return [el("a", { href: cellAddress(cell.id) }, cell.family), cell.notes.map((note) => el("span", { class: "quiet" }, ` ${note}`))];
}

function scoreCell(cell, score) {
  const entry = cell.scores[score.name];
  if (!entry || entry.mean === null) return el("span", { class: "quiet", title: entry?.why }, "–");
  const parts = [number(entry.mean, score.digits)];
  if (entry.se !== null && entry.se !== undefined) parts.push(el("span", { class: "error-text" }, ` ± ${number(entry.se, score.digits)}`));
  return parts;
}

function cellColumns(scores) {
  return [
    { label: "method", header: true, value: (cell) => cell.label, cell: cellLink },
    { label: "model", value: (cell) => cell.model, cell: (cell) => cell.model },
    { label: "bits", value: (cell) => cell.bits, cell: (cell) => cell.bits ?? "–" },
    { label: "prompts", value: (cell) => cell.prompts, cell: (cell) => cell.prompts ?? "–" },
    { label: "n", title: "videos", numeric: true, value: (cell) => cell.n ?? null, cell: (cell) => cell.n ?? "–" },
    { label: "state", value: (cell) => cell.state, cell: stateChip },
    ...scores.map((score) => ({
      label: score.label + arrow(score),
      title: [score.name, meaning(score)].filter(Boolean).join(": "),
      numeric: true,
      better: score.better,
      value: (cell) => real(cell.scores[score.name]?.mean ?? null),
      cell: (cell) => scoreCell(cell, score),
    })),
  ];
}

const FILTERS = [
  ["model", "Model"],
  ["method", "Method"],
  ["bits", "Bits"],
  ["state", "State"],
];

function cellsView() {
  const chosen = new Set(DATA.scores.slice(0, SHOWN_SCORES).map((score) => score.name));
  const state = { text: "", model: "", method: "", bits: "", state: "" };
  const host = el("div");
  const count = el("p", { class: "count", role: "status" });
  let table = null;

  function passing() {
    const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
    return DATA.cells.filter((cell) => {
      const text = [cell.label, cell.model, cell.prompts, cell.sampler, cell.kernel, cell.state, cell.reason, cell.key].join(" ").toLowerCase();
      return FILTERS.every(([name]) => !state[name] || cell[name] === state[name]) && words.every((word) => text.includes(word));
    });
  }

  function refresh() {
    const rows = passing();
    table.show(rows);
    count.textContent = rows.length === DATA.cells.length ? `All ${plural(rows.length, "cell", "cells")}` : `${rows.length} of ${plural(DATA.cells.length, "cell", "cells")}`;
  }

  function rebuild() {
    table = grid({
      caption: "All cells: scores are means, ± one standard error over prompts",
      label: "All cells",
      columns: cellColumns(DATA.scores.filter((score) => chosen.has(score.name))),
      rows: [],
      rowClass: (cell) => cell.state,
      span: (cell) => (cell.state === "done" ? null : cell.reason ?? "no reason was recorded"),
      spanFrom: 6,
    });
    host.replaceChildren(table.node);
    refresh();
  }

  const search = el("input", { type: "search", oninput: () => { state.text = search.value; refresh(); } });
  const selects = FILTERS.map(([name, label]) => {
    const values = [...new Set(DATA.cells.map((cell) => cell[name]).filter(Boolean))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    return choice(label, [["", "all"], ...values.map((value) => [value, value])], "", (value) => { state[name] = value; refresh(); });
  });
  const reset = el("button", {
    type: "button",
    onclick: () => {
      for (const name of Object.keys(state)) state[name] = "";
      search.value = "";
      for (const label of selects) label.querySelector("select").value = "";
      refresh();
    },
  }, "Show all");
  const boxes = DATA.scores.map((score) => {
    const box = el("input", { type: "checkbox", checked: chosen.has(score.name), value: score.name });
    box.addEventListener("change", () => {
      if (box.checked) chosen.add(score.name);
      else chosen.delete(score.name);
      rebuild();
    });
    return el("label", { class: "check" }, box, score.label);
  });
  rebuild();
  return [
    el("search", {}, el("form", { class: "controls", onsubmit: (event) => event.preventDefault() }, el("label", { class: "field" }, el("span", {}, "Search"), search), selects, reset)),
    boxes.length ? details("Columns", el("fieldset", { class: "picker" }, el("legend", { class: "unseen" }, "Scores shown as columns"), boxes)) : null,
    count,
    host,
  ];
}
