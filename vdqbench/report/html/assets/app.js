// Views by address, the theme, and what stands above and below all of them.

const VIEWS = {
  cells: ["Cells", cellsView],
  plots: ["Plots", plotsView],
  videos: ["Videos", videosView],
  tables: ["Tables", tablesView],
};
const kept = new Map();

// Views keep their state while the page is open; pages of cells are made anew.
function viewOf(address) {
  const [name, id] = address.split("/");
  const cell = name === "cell" ? CELLS.get(plain(id)) : null;
  if (cell) return { title: cell.label, current: "cells", nodes: cellView(cell) };
  const known = Object.hasOwn(VIEWS, name) ? name : "cells";
  const [title, make] = VIEWS[known];
  if (!kept.has(known)) kept.set(known, [el("h2", {}, title), ...make()].flat());
  return { title, current: known, nodes: kept.get(known) };
}

// An address that was typed may be no valid one.
function plain(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return null;
  }
}

function route(event) {
  hideTip();
  const view = viewOf(location.hash.slice(1));
  document.getElementById("view").replaceChildren(...view.nodes.flat(Infinity).filter(Boolean));
  document.title = `${view.title} – ${DATA.title}`;
  for (const link of document.querySelectorAll("#views a")) {
    if (link.hash === `#${view.current}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!event) return;
  window.scrollTo(0, 0);
  const heading = document.querySelector("#view h2");
  heading.setAttribute("tabindex", -1);
  heading.focus({ preventScroll: true });
}

function themes() {
  const select = document.getElementById("theme");
  const apply = (value) => {
    if (value === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = value;
  };
  select.value = recalled() ?? "auto";
  apply(select.value);
  select.addEventListener("change", () => {
    apply(select.value);
    remember(select.value);
  });
}

// A browser may forbid a page from disk to remember anything.
function recalled() {
  try {
    return localStorage.getItem("vdqbench-theme");
  } catch {
    return null;
  }
}

function remember(value) {
  try {
    localStorage.setItem("vdqbench-theme", value);
  } catch {
    return;
  }
}

function start() {
  document.getElementById("title").textContent = DATA.title;
  document.getElementById("views").append(...Object.entries(VIEWS).map(([name, [title]]) => el("li", {}, el("a", { href: `#${name}` }, title))));
  const states = Object.entries(DATA.counts).filter(([, count]) => count).map(([state, count]) => `${count} ${state}`);
  document.getElementById("notices").append(
    el("p", { class: "lead" }, `${plural(DATA.cells.length, "cell", "cells")}: ${states.join(", ")}`),
    ...DATA.minis.map((text) => el("p", { class: "notice" }, `${text}.`)),
    ...(DATA.warnings.length ? [el("details", { class: "notice failed", open: DATA.warnings.length < 4 }, el("summary", {}, plural(DATA.warnings.length, "warning", "warnings")), el("ul", {}, DATA.warnings.map((text) => el("li", {}, text))))] : []),
  );
  document.getElementById("foot").append(
    el("p", {}, `Made by vdqbench ${DATA.version} on ${DATA.made}. Scores are means over videos; latency and memory are only shown where integer kernels measured them; sizes and bit operations are computed.`),
  );
  document.getElementById("skip").addEventListener("click", () => document.getElementById("main").focus());
  document.addEventListener("keydown", (event) => event.key === "Escape" && hideTip());
  themes();
  window.addEventListener("hashchange", route);
  route(null);
}

start();
