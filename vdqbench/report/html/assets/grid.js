// A table that sorts by its column headings.

// columns: {label, title, numeric, better, value(row), cell(row), header}; value is what is sorted by, cell what is shown.
// A row that gives `span(row)` shows that one cell over all columns from `spanFrom` on.
function grid({ caption, columns, rows, label, rowClass = () => null, span = () => null, spanFrom = columns.length, start = null }) {
  const body = el("tbody");
  const heads = columns.map((column, i) => {
    const button = el("button", { type: "button", class: "sort", title: column.title, onclick: () => sortBy(i) }, column.label);
    return el("th", { scope: "col", class: column.numeric ? "num" : null, "aria-sort": "none" }, button);
  });
  const table = el("table", { class: "grid" }, el("caption", {}, caption), el("thead", {}, el("tr", {}, heads)), body);
  const region = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, table);
  const state = { rows, column: null, down: false };

  function render() {
    body.replaceChildren(...sorted().map(line));
  }

  function sorted() {
    if (state.column === null) return state.rows;
    const column = columns[state.column];
    const known = (row) => {
      const value = column.value(row);
      return value !== null && value !== undefined && value !== "" && !Number.isNaN(value);
    };
    const sign = state.down ? -1 : 1;
    const compare = (a, b) => {
      const [left, right] = [column.value(a), column.value(b)];
      if (column.numeric) return left === right ? 0 : sign * (left < right ? -1 : 1);
      return sign * String(left).localeCompare(String(right), "en", { numeric: true });
    };
    return [...state.rows.filter(known).sort(compare), ...state.rows.filter((row) => !known(row))];
  }

  function line(row) {
    const merged = span(row);
    const shown = merged === null ? columns : columns.slice(0, spanFrom);
    const cells = shown.map((column) => {
      const content = column.cell(row);
      const attributes = { class: column.numeric ? "num" : null };
      return column.header ? el("th", { ...attributes, scope: "row" }, content) : el("td", attributes, content);
    });
    if (merged !== null && columns.length > spanFrom) cells.push(el("td", { colspan: columns.length - spanFrom, class: "reason" }, merged));
    return el("tr", { class: rowClass(row) }, cells);
  }

  function sortBy(i) {
    const column = columns[i];
    const first = column.numeric && column.better !== false;
    state.down = state.column === i ? !state.down : first;
    state.column = i;
    heads.forEach((head, j) => head.setAttribute("aria-sort", j === i ? (state.down ? "descending" : "ascending") : "none"));
    render();
    announce(`Sorted by ${column.label}, ${state.down ? "descending" : "ascending"}`);
  }

  render();
  if (start !== null) sortBy(start);
  return {
    node: region,
    show(next) {
      state.rows = next;
      render();
    },
  };
}

// Pairs of a name and a value.
function facts(pairs) {
  return el("dl", { class: "facts" }, pairs.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

// A table of plain texts. align: "l" or "r" by column.
function plainTable(caption, head, rows, align) {
  const side = (i) => (align[i] === "r" ? "num" : null);
  return el(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    el(
      "table",
      { class: "grid" },
      el("caption", { class: "unseen" }, caption),
      el("thead", {}, el("tr", {}, head.map((text, i) => el("th", { scope: "col", class: side(i) }, text)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((text, i) => (i ? el("td", { class: side(i) }, text) : el("th", { scope: "row", class: side(i) }, text)))))),
    ),
  );
}
