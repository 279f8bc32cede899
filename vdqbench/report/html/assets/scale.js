// Positions, ticks, symbols and colours.

const SERIES = 8;
const SYMBOLS = [
  (r) => `M${-r},0A${r},${r} 0 1 0 ${r},0A${r},${r} 0 1 0 ${-r},0Z`,
  (r) => `M${-0.9 * r},${-0.9 * r}H${0.9 * r}V${0.9 * r}H${-0.9 * r}Z`,
  (r) => `M0,${-1.15 * r}L${1.1 * r},${0.85 * r}H${-1.1 * r}Z`,
  (r) => `M0,${-1.25 * r}L${1.25 * r},0L0,${1.25 * r}L${-1.25 * r},0Z`,
  (r) => `M0,${1.15 * r}L${1.1 * r},${-0.85 * r}H${-1.1 * r}Z`,
  (r) => `M${-r},${-0.4 * r}H${-0.4 * r}V${-r}H${0.4 * r}V${-0.4 * r}H${r}V${0.4 * r}H${0.4 * r}V${r}H${-0.4 * r}V${0.4 * r}H${-r}Z`,
  (r) => `M${-1.2 * r},0L${-0.6 * r},${-r}H${0.6 * r}L${1.2 * r},0L${0.6 * r},${r}H${-0.6 * r}Z`,
];

// Colour and shape of the i-th series; both change, so that neither colour alone nor shape alone has to be told.
function look(i) {
  return { colour: `var(--series-${(i % SERIES) + 1})`, symbol: SYMBOLS[i % SYMBOLS.length] };
}

function linear(low, high, from, to) {
  const place = (value) => from + ((value - low) / (high - low || 1)) * (to - from);
  place.ticks = (count) => linearTicks(low, high, count);
  return place;
}

function linearTicks(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw || 1));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= raw * 0.999) ?? 10 * power;
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

function logarithmic(low, high, from, to) {
  const place = linear(Math.log(low), Math.log(high), from, to);
  const scale = (value) => place(Math.log(value));
  scale.log = true;
  scale.ticks = (count) => {
    const decades = Math.log10(high / low);
    const factors = decades > count ? [1] : decades > count / 3 ? [1, 3] : [1, 2, 5];
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      for (const factor of factors) {
        const tick = Number((factor * 10 ** power).toPrecision(12));
        if (tick >= low * (1 - 1e-9) && tick <= high * (1 + 1e-9)) ticks.push(tick);
      }
    }
    return ticks.length >= 2 ? ticks : linearTicks(low, high, count);
  };
  return scale;
}

// The span of values with some room at both ends.
function padded(values, share = 0.07) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = (high - low || Math.abs(high) || 1) * share;
  return [low - room, high + room];
}

function paddedLog(values, share = 0.07) {
  const [low, high] = padded(values.map(Math.log), share);
  return [Math.exp(low), Math.exp(high)];
}

// Sizes spread over more than a decade are shown by their logarithm.
function wide(values) {
  return Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 10;
}

// Viridis at nine points: even in lightness, so that it also reads in grey.
const SEQUENCE = ["440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725"].map((hex) =>
  [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)),
);

function shade(share) {
  const at = Math.min(1, Math.max(0, share)) * (SEQUENCE.length - 1);
  const i = Math.min(SEQUENCE.length - 2, Math.floor(at));
  const mixed = SEQUENCE[i].map((from, k) => Math.round(from + (SEQUENCE[i + 1][k] - from) * (at - i)));
  return `rgb(${mixed.join(",")})`;
}
