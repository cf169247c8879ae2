/**
 * Table of samples with search, filters, sorting and pages; a row expands to show every answer in full.
 * Text is only inserted as text nodes.
 */
function sampleTable(host, { rows, total, prefix, suffix }) {
  if (!rows.length) { host.append(html("p", { class: "note" }, "No answers yet.")); return; }
  const PAGE = 20;
  const iterations = rows[0].answers.map((_, t) => t).filter((t) => rows.some((row) => row.answers[t]));
  const state = { find: "", filter: "all", iteration: iterations[iterations.length - 1], sort: "index", descending: false, page: 0 };
  const ends = { stop: "EOS", stop_string: "stop string", length: "truncated" };
  // control characters are invisible; Unicode has a symbol for each
  const visible = (text) => text.replace(/[\u0000-\u0008\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)));
  const trimmed = (prompt) => {
    let text = prompt.startsWith(prefix) ? prompt.slice(prefix.length) : prompt;
    if (suffix && text.endsWith(suffix)) text = text.slice(0, -suffix.length);
    return text.trim() || prompt;
  };
  const answerOf = (row) => row.answers[state.iteration] || {};
  const filters = {
    all: ["All", () => true],
    negative: ["Margin below 0", (row) => answerOf(row).margin !== null && answerOf(row).margin < 0],
    cut: ["Truncated", (row) => answerOf(row).end === "length"],
    ended: ["Not truncated", (row) => answerOf(row).end && answerOf(row).end !== "length"],
    longer: ["Longer than the human answer", (row) => answerOf(row).tokens > row.tokens],
    same: ["Identical to the human answer", (row) => answerOf(row).text === row.actual],
  };
  const orders = {
    index: ["Index", (row) => row.index],
    prompt: ["Prompt", (row) => trimmed(row.prompt)],
    margin: ["Margin", (row) => answerOf(row).margin],
    tokens: ["Tokens", (row) => answerOf(row).tokens],
    end: ["End", (row) => answerOf(row).end],
  };
  const compare = (a, b) => (a === b ? 0 : a === null || a === undefined ? 1 : b === null || b === undefined ? -1 : 0);

  const find = html("input", { type: "search", placeholder: "Word in a prompt or an answer" });
  const select = (options, value) => {
    const element = html("select");
    for (const [key, name] of options) element.append(html("option", { value: key }, name));
    element.value = value;
    return element;
  };
  const filter = select(Object.entries(filters).map(([key, [name]]) => [key, name]), "all");
  const iteration = select(iterations.map((t) => [t, `iteration ${t}`]), state.iteration);
  const order = select(Object.entries(orders).flatMap(([key, [name]]) => [[`${key} up`, `${name} ↑`], [`${key} down`, `${name} ↓`]]), "index up");
  const labelled = (name, control, kind = "") => html("label", { class: kind }, name, control);
  const shown = html("p", { class: "shown", role: "status" });
  const body = html("tbody");
  const heads = {};
  const head = (key, kind) => {
    const button = html("button", { type: "button", class: "sort" }, key === "index" ? "#" : orders[key][0]);
    heads[key] = html("th", { scope: "col", class: kind }, button);
    button.addEventListener("click", () => sortBy(key, state.sort === key ? !state.descending : false));
    return heads[key];
  };
  const generatedHead = html("th", { scope: "col" });
  const table = html("table", { class: "samples" },
    html("thead", {}, html("tr", {}, head("index", "c-index"), head("prompt", ""), html("th", { scope: "col" }, "Human"),
      generatedHead, head("margin", "c-number number"), head("tokens", "c-number number"), head("end", "c-end"))), body);
  const back = html("button", { type: "button", class: "button" }, "Previous");
  const next = html("button", { type: "button", class: "button" }, "Next");
  const pages = html("span");
  host.append(
    html("div", { class: "toolbar", role: "search" }, labelled("Find", find, "find"), labelled("Show", filter),
      labelled("Answers of", iteration), labelled("Sort by", order)),
    shown, table, html("div", { class: "pager" }, back, pages, next));

  function sortBy(key, descending) {
    Object.assign(state, { sort: key, descending, page: 0 });
    draw();
  }

  function selected() {
    const words = state.find.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (row) => [row.prompt, row.actual, answerOf(row).text || ""].join("\n").toLowerCase();
    const value = orders[state.sort][1];
    const sign = state.descending ? -1 : 1;
    return rows.filter(filters[state.filter][1])
      .filter((row) => !words.length || words.every((word) => text(row).includes(word)))
      .map((row) => [value(row), row])
      .sort(([a], [b]) => compare(a, b) || sign * (typeof a === "string" ? a.localeCompare(b) : a - b) || 0)
      .map(([, row]) => row);
  }

  function draw() {
    const matches = selected();
    const count = Math.max(1, Math.ceil(matches.length / PAGE));
    state.page = Math.min(state.page, count - 1);
    const from = state.page * PAGE;
    const part = matches.slice(from, from + PAGE);
    const all = rows.length === total ? `all ${figure(total)} pairs` : `${figure(rows.length)} of ${figure(total)} pairs are included: evenly spaced ones, and those with extreme margins`;
    shown.textContent = matches.length ? `${figure(from + 1)} to ${figure(from + part.length)} of ${figure(matches.length)} · ${all}` : `No matches · ${all}`;
    for (const [key, th] of Object.entries(heads)) {
      if (key === state.sort) th.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    }
    order.value = `${state.sort} ${state.descending ? "down" : "up"}`;
    generatedHead.textContent = `Model, iteration ${state.iteration}`;
    body.replaceChildren(...part.map(tableRow));
    table.hidden = !matches.length;
    pages.textContent = `Page ${state.page + 1} of ${count}`;
    back.disabled = state.page === 0;
    next.disabled = state.page >= count - 1;
  }

  const clamped = (text) => html("div", { class: "clamp", dir: "auto" }, visible(text));
  const margin = (value) => html("span", value !== null && value !== undefined && value < 0 ? { class: "negative" } : {}, figure(value));

  function tableRow(row) {
    const answer = answerOf(row);
    const button = html("button", { type: "button", class: "open-row", "aria-expanded": "false", "aria-label": `Pair ${row.index}: all answers` }, String(row.index));
    const line = html("tr", {},
      html("td", {}, button),
      html("td", { "data-name": "Prompt" }, clamped(trimmed(row.prompt))),
      html("td", { "data-name": "Human" }, clamped(row.actual)),
      html("td", { "data-name": "Model" }, clamped(answer.text || "–")),
      html("td", { class: "number", "data-name": "Margin" }, margin(answer.margin)),
      html("td", { class: "number", "data-name": "Tokens" }, figure(answer.tokens)),
      html("td", { class: "c-end-cell", "data-name": "End" }, ends[answer.end] || answer.end || "–"));
    let detail = null;
    button.addEventListener("click", () => {
      if (detail) { detail.remove(); detail = null; }
      else { detail = detailRow(row); line.after(detail); }
      button.setAttribute("aria-expanded", String(detail !== null));
    });
    return line;
  }

  function detailRow(row) {
    const block = (kind, name, about, text) => html("div", { class: kind },
      html("h3", {}, name, html("span", {}, about)), html("div", { class: "text", dir: "auto" }, visible(text)));
    const tokens = (count) => (count === null ? "" : `${figure(count)} tokens`);
    const full = html("div", { class: "full" }, block("by-human", "Human", tokens(row.tokens), row.actual));
    row.answers.forEach((answer, t) => {
      if (!answer) return;
      const about = [tokens(answer.tokens), ends[answer.end] || answer.end, answer.margin === null ? "" : `margin ${figure(answer.margin)}`];
      full.append(block("by-model", `Iteration ${t}`, about.filter(Boolean).join(" · "), answer.text));
    });
    return html("tr", { class: "detail" }, html("td", { colspan: "7" }, block("prompt-text", "Prompt with chat template", "", row.prompt), full));
  }

  const changed = (change) => { change(); state.page = 0; draw(); };
  find.addEventListener("input", () => changed(() => { state.find = find.value; }));
  filter.addEventListener("change", () => changed(() => { state.filter = filter.value; }));
  iteration.addEventListener("change", () => changed(() => { state.iteration = Number(iteration.value); }));
  order.addEventListener("change", () => { const [key, way] = order.value.split(" "); sortBy(key, way === "down"); });
  back.addEventListener("click", () => { state.page -= 1; draw(); });
  next.addEventListener("click", () => { state.page += 1; draw(); });
  draw();
}
