// Finished tables: ours, the paper's numbers, differences and marks, as they were written to disk.

function marks(notes) {
  return notes?.length ? el("sup", {}, `[${notes.join(", ")}]`) : null;
}

function tableCell(text) {
  const strong = { 1: "b", 2: "u" }[text.rank];
  return el(
    "td",
    { class: text.printed ? "num printed" : "num" },
    strong ? el(strong, {}, text.value) : text.value,
    marks(text.notes),
    text.beside ? el("span", { class: "beside" }, text.beside) : null,
  );
}

function paperTable(table) {
  const id = uid("table");
  const head = [table.group ? el("th", { scope: "col" }, table.group) : null, el("th", { scope: "col" }, "row")];
  const titles = table.headings.map((text) => el("th", { scope: "col", class: text.printed ? "num printed" : "num" }, text.value, marks(text.notes)));
  let previous = null;
  const lines = table.lines.map((line, i) => {
    const starts = i > 0 && line.group !== previous;
    const group = i === 0 || line.group !== previous ? line.group : "";
    previous = line.group;
    const label = line.id && CELLS.has(line.id) ? el("a", { href: cellAddress(line.id) }, line.label) : line.label;
    return el("tr", { class: [starts ? "starts" : "", line.state].join(" ").trim() || null }, table.group ? el("td", {}, group ?? "") : null, el("th", { scope: "row" }, label), line.cells.map(tableCell));
  });
  return el(
    "section",
    { class: "paper", "aria-labelledby": id },
    el("h3", { id }, table.title),
    el(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-labelledby": id },
      el("table", { class: "grid" }, el("caption", { class: "unseen" }, table.title), el("thead", {}, el("tr", {}, head, titles)), el("tbody", {}, lines)),
    ),
    table.footnotes.length ? el("ol", { class: "footnotes" }, table.footnotes.map((text) => el("li", {}, text))) : null,
    opened("Notes", el("ul", { class: "quiet" }, table.notes.map((text) => el("li", {}, text)))),
    table.agreement ? agreement(table) : null,
  );
}

function agreement(table) {
  const { heading, explanation, orders, claims } = table.agreement;
  return details(
    heading,
    orders.rows.length ? [el("p", { class: "quiet" }, explanation), plainTable(`Order of the methods: ${table.title}`, orders.head, orders.rows, "lrrrl")] : null,
    claims.rows.length ? plainTable(`Claims: ${table.title}`, claims.head, claims.rows, "lll") : null,
  );
}

function tablesView() {
  if (!DATA.tables.length) return [el("p", { class: "quiet" }, "No table was made here yet: vdqbench table=quickstart makes one.")];
  const host = el("div");
  const show = (i) => host.replaceChildren(paperTable(DATA.tables[Number(i)]));
  show("0");
  const names = DATA.tables.map((table, i) => [String(i), `${table.name}: ${table.title}`]);
  return [names.length > 1 ? el("div", { class: "controls" }, choice("Table", names, "0", show)) : null, host];
}
