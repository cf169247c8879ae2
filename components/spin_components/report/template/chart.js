// Small charts as SVG: drawn to the width they have, coloured by the page's style, read out by pointer or arrow keys.
const svg = (name, attributes = {}, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};
const html = (name, attributes = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};

/** A number for people: about four figures, a true minus, powers of ten where it is very small. */
function figure(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  let text;
  if (size === 0) text = "0";
  else if (size < 1e-3 || size >= 1e7) text = value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  else if (Number.isInteger(value)) text = value.toLocaleString("en");
  else text = value.toFixed(size < 10 ? 3 : size < 100 ? 2 : 1);
  return text.replaceAll("-", "−");
}

/** Round values between two ends, about so many. */
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) {
    found.push(Math.abs(tick) < step * 1e-9 ? 0 : Number(tick.toPrecision(12)));
  }
  return found;
}

/** Tick labels share their number of digits. */
function tickLabels(values) {
  const size = Math.max(...values.map(Math.abs));
  if (size > 0 && size < 1e-3) return values.map((value) => (value ? value.toExponential(1).replace("e-", "e−").replace(".0e", "e") : "0"));
  const digits = Math.max(0, ...values.map((value) => (String(value).split(".")[1] || "").length));
  return values.map((value) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replaceAll("-", "−"));
}

/** The end of a long name, which is where names of runs differ. */
const short = (name, most) => (name.length > most ? `…${name.slice(1 - most)}` : name);

const nearest = (sorted, value) => {
  let low = 0;
  let high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle; else high = middle;
  }
  return Math.abs(sorted[low] - value) <= Math.abs(sorted[high] - value) ? low : high;
};

/** Push labels apart that would overlap; they keep their order. */
function spread(places, gap, low, high) {
  const order = places.map((_, i) => i).sort((a, b) => places[a] - places[b]);
  const out = [...places];
  order.forEach((i, rank) => { if (rank) out[i] = Math.max(out[i], out[order[rank - 1]] + gap); });
  let limit = high;
  for (const i of order.reverse()) { out[i] = Math.max(low, Math.min(out[i], limit)); limit = out[i] - gap; }
  return out;
}

/**
 * A figure that draws itself again when its width changes.
 * @param host where it goes
 * @param title shown above; `summary` tells the same to who cannot see it
 * @param draw (width) => { node, read(x) → text, stops: pixels a key moves between }
 */
function chartFigure(host, { title, summary, note }, draw) {
  const output = html("output");
  const holder = html("div");
  const place = html("figure", { class: "chart" }, html("figcaption", {}, html("span", {}, title), output), holder);
  if (note) place.append(html("p", {}, note));
  host.append(place);
  let drawn = 0;
  const redraw = () => {
    const width = Math.round(holder.clientWidth);
    if (!width || width === drawn) return;
    drawn = width;
    output.textContent = "";
    const { node, read, stops } = draw(width);
    node.setAttribute("role", "img");
    node.setAttribute("aria-label", `${title}. ${summary}`);
    holder.replaceChildren(node);
    if (!read) return;
    node.setAttribute("tabindex", "0");
    let at = -1;
    const show = (x) => { output.textContent = x === null ? "" : read(x); if (x === null) read(null); };
    node.addEventListener("pointermove", (event) => { at = nearest(stops, event.offsetX); show(stops[at]); });
    node.addEventListener("pointerleave", () => { if (document.activeElement !== node) show(null); });
    node.addEventListener("blur", () => { at = -1; show(null); });
    node.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: stops.length - 1 };
      if (!(event.key in moves)) return;
      event.preventDefault();
      at = Math.max(0, Math.min(stops.length - 1, moves[event.key]));
      show(stops[at]);
    });
  };
  new ResizeObserver(redraw).observe(holder);
  redraw();
}
