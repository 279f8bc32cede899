// The data in the page, and how numbers are written.

const DATA = JSON.parse(document.getElementById("data").textContent);
const CELLS = new Map(DATA.cells.map((cell) => [cell.id, cell]));
const SCORES = new Map(DATA.scores.map((score) => [score.name, score]));
const SETTINGS = new Map(DATA.settings.map((setting) => [setting.key, setting]));

function cellAddress(id) {
  return `#cell/${encodeURIComponent(id)}`;
}

// JSON has no infinities; the page's data has words for them.
function real(value) {
  if (typeof value !== "string") return value;
  return { inf: Infinity, "-inf": -Infinity, nan: NaN }[value] ?? NaN;
}

function number(value, digits) {
  const known = real(value);
  if (known === null || known === undefined) return "–";
  if (Number.isNaN(known)) return "not a number";
  if (!Number.isFinite(known)) return known > 0 ? "∞" : "−∞";
  const text = known.toFixed(digits);
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
}

function signed(value, digits) {
  const text = number(value, digits);
  return text.startsWith("−") || text === "–" ? text : `+${text}`;
}

// A few significant digits, without trailing zeros: for axes and legends.
function brief(value, precision = 4) {
  return String(Number(value.toPrecision(precision))).replace("-", "−");
}

function arrow(score) {
  return score.better === true ? " ↑" : score.better === false ? " ↓" : "";
}

function meaning(score) {
  return score.better === true ? "higher is better" : score.better === false ? "lower is better" : "";
}

function plural(count, one, many) {
  return `${count} ${count === 1 ? one : many}`;
}
