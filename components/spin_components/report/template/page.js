// Draws the charts and the table of samples from the page's data.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const published = data.validation.filter((point) => point.published);

  forestPlot(at("forest"), {
    origin: data.start.name,
    title: `Change of val_loss from the ${data.start.name}, nats per token`,
    note: "Dots are changes, bars their 95 % confidence intervals; negative changes are better.",
    rows: published.filter((point) => point.difference).map((point) => ({ name: `iteration ${point.iteration}`, ...point.difference })),
  });

  // x is 0 for the first reference, t + 1 for the end of iteration t, and in between for the epochs within it
  const epochs = {};
  for (const point of data.validation) epochs[point.iteration] = Math.max(epochs[point.iteration] || 0, point.epoch + 1);
  const position = (point) => point.iteration + (point.epoch + 1) / epochs[point.iteration];
  const names = new Map([[0, data.start.name], ...Object.keys(epochs).map((t) => [Number(t) + 1, `iteration ${t}`])]);
  if (data.start.val_loss !== null && data.validation.length) {
    const bound = (point, end) => (point.difference ? data.start.val_loss + point.difference[end] : null);
    linePlot(at("validation"), {
      title: "Validation loss, nats per token",
      note: `Whiskers: confidence interval of the change from the ${data.start.name}. Hollow: epochs that were not published.`,
      xName: (x) => names.get(x) || `epoch within iteration ${Math.floor(x)}`,
      xLabels: names,
      height: 240,
      series: [{
        name: "val_loss", tone: "ink", dots: true,
        x: [0, ...data.validation.map(position)], y: [data.start.val_loss, ...data.validation.map((point) => point.val_loss)],
        low: [null, ...data.validation.map((point) => bound(point, "low"))],
        high: [null, ...data.validation.map((point) => bound(point, "high"))],
        hollow: [false, ...data.validation.map((point) => !point.published)],
      }],
    });
  }

  const steps = data.steps;
  if (steps.total) {
    const starts = steps.starts.map((start) => ({ x: start.step, label: steps.starts.length > 6 ? String(start.iteration) : `iteration ${start.iteration}` }));
    const shown = steps.loss.x.length;
    at("steps-note").textContent = `${figure(steps.total)} optimizer steps.` + (shown < steps.total
      ? ` Lines show ${figure(shown)} of ${figure(steps.total)} points: the minimum and maximum of each interval.` : "");
    const line = (name, tone, key) => ({ name, tone, ...steps[key] });
    const plot = (title, series, more = {}) => linePlot(at("steps"), { title, xName: "step", starts, series, ...more });
    plot("Loss, nats per pair", [line("loss", "ink", "loss")], { zero: true, rules: data.unlearnt ? [data.unlearnt] : [] });
    plot("Reward accuracy", [line("acc", "ink", "acc")], { zero: true });
    plot("Rewards", [line("human", "human", "rewards_actual_mean"), line("generated", "model", "rewards_generated_mean")], { zero: true });
    plot("Margin: reward of human minus generated", [line("margin", "ink", "margin")], { zero: true });
    if (steps.current_advantage_mean) {
      const advantages = [line("of human over generated", "human", "current_advantage_mean")];
      if (steps.historical_advantage_mean) advantages.push(line("of generated over iteration 0’s", "model", "historical_advantage_mean"));
      plot("Advantages in T-SPIN’s reward", advantages, { zero: true });
    }
    plot("Learning rate", [line("lr", "ink", "lr")], { zero: true });
    plot("Gradient norm, before clipping", [line("norm", "ink", "grad_norm")], { zero: true });
  } else at("steps-note").textContent = "No epoch is finished yet.";

  const { lengths } = data;
  if (lengths.edges) {
    const stairs = (name, tone, shares) => ({ name, tone, stairs: true, x: lengths.edges, y: [...shares, 0] });
    const [early, late] = [lengths.generated[0], lengths.generated[lengths.generated.length - 1]];
    const series = [stairs("human", "human", lengths.human), stairs(`iteration ${late.iteration}`, "model", late.shares)];
    if (early !== late) series.splice(1, 0, stairs(`iteration ${early.iteration}`, "early", early.shares));
    linePlot(at("answer-plots"), {
      title: "Tokens per answer", xName: "tokens from", series, zero: true, format: (y) => `${Number((y * 100).toFixed(1))} %`,
      note: `Share of answers by length. Means: human ${figure(lengths.human_mean)}, ` +
        lengths.generated.map((each) => `iteration ${each.iteration} ${figure(each.mean)}`).join(", ") + ".",
    });
  }
  barPlot(at("answer-plots"), {
    title: "Finish reasons of generated answers",
    rows: data.finish.map((row) => ({ name: `iteration ${row.iteration}`, ...row })),
    parts: [{ key: "stop", name: "EOS", tone: "stop" }, { key: "stop_string", name: "stop string", tone: "string" },
      { key: "length", name: "truncated", tone: "length" }],
  });
  const known = (key) => data.drift.filter((row) => row[key] !== null);
  const drifting = (name, tone, key) => ({ name, tone, dots: true, x: known(key).map((row) => row.iteration), y: known(key).map((row) => row[key]) });
  linePlot(at("answer-plots"), {
    title: "Log-probability per token under the reference",
    note: "Mean over the pairs of an iteration, nats, of human answers and of the reference’s own answers.",
    xName: (x) => `iteration ${x}`,
    xLabels: new Map(data.drift.map((row) => [row.iteration, `iteration ${row.iteration}`])),
    series: [drifting("human", "human", "actual"), drifting("generated", "model", "generated")],
  });

  sampleTable(at("sample-table"), data.samples);
})();
