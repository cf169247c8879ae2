/**
 * Line chart.
 * @param spec title, note, xName, series: [{name, tone, x, y, low?, high?, hollow?, stairs?, dots?}], and optional
 *   rules: [{y, label}], starts: [{x, label}], xLabels: Map, zero, height
 */
function linePlot(host, spec) {
  const series = spec.series.filter((line) => line.x.length);
  if (!series.length) return;
  const first = series[0];
  const summary = series.map((line) =>
    `${line.name}: ${figure(line.y[0])} at first, ${figure(line.y[line.y.length - 1])} at last`).join("; ");
  chartFigure(host, { title: spec.title, summary, note: spec.note }, (width) => {
    const height = spec.height || 190;
    const named = series.length > 1;
    const longest = Math.max(0, ...series.map((line) => short(line.name, 16).length));
    const box = { left: 46, right: width - (named ? 12 + longest * 6.9 : 10), top: spec.starts ? 20 : 10, bottom: height - 30 };
    const xs = series.flatMap((line) => [line.x[0], line.x[line.x.length - 1]]);
    const ys = series.flatMap((line) => [...line.y, ...(line.low || []), ...(line.high || [])]).filter((y) => y !== null);
    if (spec.zero) ys.push(0);
    for (const rule of spec.rules || []) ys.push(rule.y);
    let [low, high] = [ys.reduce((a, b) => Math.min(a, b)), ys.reduce((a, b) => Math.max(a, b))];
    if (low === high) { const pad = Math.abs(low) * 0.1 || 1; low -= spec.zero && low >= 0 ? 0 : pad; high += pad; }
    else { const pad = (high - low) * 0.06; if (!(spec.zero && low === 0)) low -= pad; high += pad; }
    let [from, to] = [Math.min(...xs), Math.max(...xs)];
    if (from === to) { from -= 0.5; to += 0.5; }
    const X = (x) => box.left + ((x - from) / (to - from)) * (box.right - box.left);
    const Y = (y) => box.bottom - ((y - low) / (high - low)) * (box.bottom - box.top);
    const node = svg("svg", { viewBox: `0 0 ${width} ${height}`, height });

    const yTicks = ticks(low, high, height / 48);
    (spec.format ? yTicks.map(spec.format) : tickLabels(yTicks)).forEach((label, i) => {
      const y = Y(yTicks[i]);
      node.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y, y2: y }),
        svg("text", { x: box.left - 8, y: y + 4, "text-anchor": "end" }, label));
    });
    const xTicks = spec.xLabels ? [...spec.xLabels.keys()] : ticks(from, to, width / 90).filter(Number.isInteger);
    for (const [i, tick] of xTicks.entries()) {
      const anchor = !spec.xLabels || xTicks.length < 2 || (i && i < xTicks.length - 1) ? "middle" : i ? "end" : "start";
      node.append(svg("text", { x: X(tick), y: box.bottom + 17, "text-anchor": anchor }, spec.xLabels ? spec.xLabels.get(tick) : figure(tick)));
    }
    node.append(svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
    for (const start of spec.starts || []) {
      if (start.x > from) node.append(svg("line", { class: "start", x1: X(start.x), x2: X(start.x), y1: box.top - 8, y2: box.bottom }));
      node.append(svg("text", { x: X(start.x) + 3, y: box.top - 8 }, start.label));
    }
    for (const rule of spec.rules || []) {
      node.append(svg("line", { class: "rule", x1: box.left, x2: box.right, y1: Y(rule.y), y2: Y(rule.y) }));
    }
    for (const line of series) drawLine(node, line, X, Y, new Set((spec.starts || []).map((start) => start.x)));
    for (const rule of spec.rules || []) {
      node.append(svg("text", { class: "over", x: box.right, y: Y(rule.y) + 15, "text-anchor": "end" }, rule.label));
    }
    if (named) {
      const ends = spread(series.map((line) => Y(line.stairs ? Math.max(...line.y) : line.y[line.y.length - 1])), 15, box.top + 4, box.bottom);
      series.forEach((line, i) => node.append(svg("text", { class: `label ${line.tone}`, x: box.right + 8, y: ends[i] + 4 }, short(line.name, 16))));
    }
    const cursor = svg("line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" });
    const dots = series.map((line) => svg("circle", { class: `fill-${line.tone}`, r: 3.5, visibility: "hidden" }));
    node.append(cursor, ...dots);
    const read = (at) => {
      for (const mark of [cursor, ...dots]) mark.setAttribute("visibility", at === null ? "hidden" : "visible");
      if (at === null) return "";
      const value = from + ((at - box.left) / (box.right - box.left)) * (to - from);
      cursor.setAttribute("x1", at);
      cursor.setAttribute("x2", at);
      const parts = series.map((line, i) => {
        const index = nearest(line.x, value);
        dots[i].setAttribute("cx", X(line.x[index]));
        dots[i].setAttribute("cy", Y(line.y[index]));
        return (named ? `${line.name} ` : "") + (spec.format || figure)(line.y[index]);
      });
      const there = first.x[nearest(first.x, value)];
      return `${spec.xLabels ? spec.xName(there) : `${spec.xName} ${figure(there)}`} · ${parts.join(" · ")}`;
    };
    return { node, read, stops: first.x.map(X) };
  });
}

/** Draw one line, interrupted at the start of each iteration. */
function drawLine(node, line, X, Y, starts) {
  let path = "";
  line.x.forEach((x, i) => {
    const [px, py] = [X(x).toFixed(1), Y(line.y[i]).toFixed(1)];
    path += path && !starts.has(x) ? (line.stairs ? `H${px}V${py}` : `L${px} ${py}`) : `M${px} ${py}`;
  });
  node.append(svg("path", { class: `line ${line.tone}`, d: path }));
  if (line.low) {
    line.x.forEach((x, i) => {
      if (line.low[i] === null) return;
      node.append(svg("line", { class: `whisker ${line.tone}`, x1: X(x), x2: X(x), y1: Y(line.low[i]), y2: Y(line.high[i]) }));
    });
  }
  if (line.dots || line.x.length === 1) {
    line.x.forEach((x, i) => {
      const isHollow = line.hollow && line.hollow[i];
      node.append(svg("circle", { class: isHollow ? `hollow ${line.tone}` : `fill-${line.tone}`, cx: X(x), cy: Y(line.y[i]), r: 4 }));
    });
  }
}

/** Forest plot: differences from one model, the origin, with their intervals, one row each, around a line at 0. */
function forestPlot(host, { title, note, rows, origin = "base" }) {
  if (!rows.length) return;
  const describe = (row) => `${row.name}: ${figure(row.mean)}, from ${figure(row.low)} to ${figure(row.high)}`;
  chartFigure(host, { title, note, summary: rows.map(describe).join("; ") }, (width) => {
    const height = rows.length * 30 + 40;
    const left = Math.max(...rows.map((row) => 24 + short(row.name, 20).length * 6.9));
    const box = { left, right: width - (width > 520 ? 190 : 16), bottom: height - 30 };
    const ends = rows.flatMap((row) => [row.low, row.high, 0]);
    const pad = (Math.max(...ends) - Math.min(...ends)) * 0.05 || 0.1;
    const [from, to] = [Math.min(...ends) - pad, Math.max(...ends) + pad];
    const X = (x) => box.left + ((x - from) / (to - from)) * (box.right - box.left);
    const node = svg("svg", { viewBox: `0 0 ${width} ${height}`, height });
    const values = ticks(from, to, (box.right - box.left) / 80);
    tickLabels(values).forEach((label, i) => {
      node.append(svg("line", { class: values[i] === 0 ? "axis" : "grid", x1: X(values[i]), x2: X(values[i]), y1: 4, y2: box.bottom }),
        svg("text", { x: X(values[i]), y: box.bottom + 17, "text-anchor": "middle" }, values[i] === 0 ? origin : label));
    });
    rows.forEach((row, i) => {
      const y = 22 + i * 30;
      const tone = row.high < 0 ? "good" : row.low > 0 ? "bad" : "open";
      node.append(svg("text", { class: "ink", x: 0, y: y + 4 }, short(row.name, 20)),
        svg("line", { class: `whisker ${tone}`, x1: X(row.low), x2: X(row.high), y1: y, y2: y }),
        svg("circle", { class: `fill-${tone}`, cx: X(row.mean), cy: y, r: 5 }));
      if (width > 520) {
        node.append(svg("text", { class: `label ${tone}`, x: box.right + 14, y: y + 4 }, figure(row.mean)),
          svg("text", { x: box.right + 66, y: y + 4 }, `${figure(row.low)} to ${figure(row.high)}`));
      }
    });
    return { node };
  });
}

/** Stacked bar chart of shares that add up to one, one bar per row. */
function barPlot(host, { title, note, rows, parts }) {
  if (!rows.length) return;
  const share = (row, part) => (row[part.key] || 0) / parts.reduce((sum, each) => sum + (row[each.key] || 0), 0);
  const percent = (value) => `${(value * 100).toFixed(value > 0 && value < 0.1 ? 1 : 0)} %`;
  const summary = rows.map((row) => `${row.name}: ${parts.map((part) => `${part.name} ${percent(share(row, part))}`).join(", ")}`).join("; ");
  chartFigure(host, { title, note, summary }, (width) => {
    const gap = Math.max(22, Math.min(40, 160 / rows.length));
    const height = rows.length * gap + 6;
    const left = 82;
    const node = svg("svg", { viewBox: `0 0 ${width} ${height}`, height });
    rows.forEach((row, i) => {
      let x = left;
      node.append(svg("text", { class: "ink", x: 0, y: i * gap + gap / 2 + 4 }, row.name));
      for (const part of parts) {
        const size = share(row, part) * (width - left);
        if (!size) continue;
        node.append(svg("rect", { class: `fill-${part.tone}`, x, y: i * gap + gap / 2 - 8, width: Math.max(1, size - 1), height: 16, rx: 2 },
          svg("title", {}, `${part.name}: ${row[part.key]}`)));
        if (size > 48) node.append(svg("text", { class: "on-bar", x: x + size / 2, y: i * gap + gap / 2 + 4, "text-anchor": "middle" }, percent(share(row, part))));
        x += size;
      }
    });
    return { node };
  });
  const key = html("p", { class: "key" });
  parts.forEach((part) => { if (rows.some((row) => row[part.key])) key.append(html("span", { class: part.tone }, part.name)); });
  host.lastElementChild.append(key);
}
