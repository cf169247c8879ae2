// SVG charts: drawn to the available width, coloured by the page's style, values shown by pointer or arrow keys.
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

/** Format a number: about four digits, U+2212 as minus, an exponent for very small and very large values. */
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

/** Round values between two ends, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const values = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) {
    values.push(Math.abs(tick) < step * 1e-9 ? 0 : Number(tick.toPrecision(12)));
  }
  return values;
}

/** Tick labels, all with the same number of digits. */
function tickLabels(values) {
  const size = Math.max(...values.map(Math.abs));
  if (size > 0 && size < 1e-3) return values.map((value) => (value ? value.toExponential(1).replace("e-", "e−").replace(".0e", "e") : "0"));
  const digits = Math.max(0, ...values.map((value) => (String(value).split(".")[1] || "").length));
  return values.map((value) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replaceAll("-", "−"));
}

/** Shorten a long name from its beginning, since names of runs differ at their ends. */
const short = (name, most) => (name.length > most ? `…${name.slice(1 - most)}` : name);

/** Index of the value in a sorted array that is nearest to a value. */
const nearest = (sorted, value) => {
  let low = 0;
  let high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle; else high = middle;
  }
  return Math.abs(sorted[low] - value) <= Math.abs(sorted[high] - value) ? low : high;
};

/** Move labels that would overlap apart, keeping their order. */
function spread(positions, gap, low, high) {
  const order = positions.map((_, i) => i).sort((a, b) => positions[a] - positions[b]);
  const out = [...positions];
  order.forEach((i, rank) => { if (rank) out[i] = Math.max(out[i], out[order[rank - 1]] + gap); });
  let limit = high;
  for (const i of order.reverse()) { out[i] = Math.max(low, Math.min(out[i], limit)); limit = out[i] - gap; }
  return out;
}

/**
 * A figure that is redrawn when its width changes.
 * @param host element to append it to
 * @param title shown above; `summary` describes the chart for screen readers
 * @param draw (width) => { node, read(x) → text, stops: x positions, in pixels, that arrow keys move between }
 */
function chartFigure(host, { title, summary, note }, draw) {
  const output = html("output");
  const holder = html("div");
  const element = html("figure", { class: "chart" }, html("figcaption", {}, html("span", {}, title), output), holder);
  if (note) element.append(html("p", {}, note));
  host.append(element);
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
