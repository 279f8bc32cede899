// Elements from names and attributes. Text only ever becomes text nodes and attribute values, never markup.

const SVG_SPACE = "http://www.w3.org/2000/svg";

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function el(tag, attributes = {}, ...children) {
  return build(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return build(document.createElementNS(SVG_SPACE, tag), attributes, children);
}

let ids = 0;

function uid(prefix) {
  ids += 1;
  return `${prefix}-${ids}`;
}

// Tell a screen reader.
function announce(text) {
  document.getElementById("live").textContent = text;
}

// The pointer's and the keyboard's tooltip. A screen reader gets the same words as the label of what has the focus.
function showTip(text, box) {
  const tip = document.getElementById("tip");
  tip.replaceChildren(...text.split("\n").map((line) => el("div", {}, line)));
  tip.hidden = false;
  const own = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, box.left + box.width / 2 - own.width / 2), document.documentElement.clientWidth - own.width - 8);
  const above = box.top - own.height - 8;
  tip.style.left = `${left + window.scrollX}px`;
  tip.style.top = `${(above > 4 ? above : box.bottom + 8) + window.scrollY}px`;
}

function hideTip() {
  document.getElementById("tip").hidden = true;
}

// A labelled select. Options: [value, text].
function choice(label, options, value, onChange) {
  const select = el("select", { onchange: () => onChange(select.value) });
  for (const [key, text] of options) select.append(el("option", { value: key, selected: key === value }, text));
  return el("label", { class: "field" }, el("span", {}, label), select);
}

function details(summary, ...children) {
  return el("details", {}, el("summary", {}, summary), ...children);
}

function opened(summary, ...children) {
  const node = details(summary, ...children);
  node.open = true;
  return node;
}

// Details whose content is made when they are first opened.
function lazyDetails(summary, make) {
  const node = details(summary);
  node.addEventListener("toggle", () => {
    if (node.open && node.childElementCount === 1) node.append(make());
  });
  return node;
}

// Draw again whenever the width of the host changes; hosts that are not shown have none yet.
function drawn(host, draw) {
  let width = 0;
  new ResizeObserver(() => {
    const now = Math.floor(host.clientWidth);
    if (now && now !== width) {
      width = now;
      draw(now);
    }
  }).observe(host);
}

function chip(text, kind) {
  return el("span", { class: `chip ${kind}` }, text);
}
