// Puts the runs' numbers into the page.
(() => {
  const runs = JSON.parse(document.getElementById("data").textContent);
  const tones = ["human", "model", "good", "early", "bad", "open", "ink"];
  forestPlot(document.getElementById("forest"), {
    title: "Change of val_loss from the base, nats a token",
    note: "Of each run’s best iteration. A dot is the change, a bar its 95 % confidence interval; left of the base is better.",
    rows: runs.filter((run) => run.from_base).map((run) => ({ name: run.label, ...run.from_base })),
  });
  const most = Math.max(0, ...runs.map((run) => run.num_iterations));
  const names = new Map([[0, "base"], ...Array.from({ length: most }, (_, t) => [t + 1, `iteration ${t}`])]);
  linePlot(document.getElementById("validation"), {
    title: "Validation loss, nats a token", xName: (x) => names.get(x), xLabels: names, height: 240,
    series: runs.filter((run) => run.base_loss !== null).map((run, i) => ({
      name: run.label, tone: tones[i % tones.length], dots: true,
      x: [0, ...Object.keys(run.losses).map((t) => Number(t) + 1)], y: [run.base_loss, ...Object.values(run.losses)],
    })),
  });
})();
