// Trials of a search: parallel coordinates, progress, and a table.

function tuningView() {
  return DATA.tunings.flatMap((study) => {
    // as Optuna ranks them: what was ended early was never the best
    const done = study.trials.filter((trial) => isNumber(trial.value) && trial.state === "COMPLETE");
    const sign = study.direction === "minimize" ? -1 : 1;
    const ranked = [...done].sort((a, b) => sign * (b.value - a.value));
    const keys = distinct(study.trials.flatMap((trial) => Object.keys(trial.params)));
    const best = ranked[0];
    const title = h("h2", {}, `${study.experiment} `, h("span", { class: "muted" }, `${study.trials.length} trials, ${sign < 0 ? "smallest" : "largest"} ${study.metric}${best ? `: ${number(best.value)} in trial ${best.number}` : ""}`));
    if (!done.length) return [title, emptyNote("No trial is finished", "The first value appears when a trial ends.")];
    const rows = [...ranked, ...study.trials.filter((trial) => !done.includes(trial))].map((trial) => h("tr", {},
      h("th", { scope: "row" }, String(trial.number)), h("td", {}, h("span", { class: trial === best ? "best" : "" }, number(trial.value))), h("td", {}, trial.state.toLowerCase()),
      keys.map((key) => h("td", { class: "code" }, isNumber(trial.params[key]) ? number(trial.params[key]) : trial.params[key] ?? "–"))));
    return [
      title,
      h("div", { class: "grid wide" },
        panelCard("Settings and result of each trial", "drag along an axis to filter", chart(() => parallelChart(study, done, keys), "tall")),
        panelCard("Value by trial", "line: best so far", chart(() => historyChart(study, done, sign), "tall"))),
      h("div", { class: "card sheet-table", style: "margin-top:14px", tabindex: 0 }, h("table", {}, h("thead", {}, h("tr", {}, ["trial", study.metric, "state", ...keys].map((name) => h("th", {}, name)))), h("tbody", {}, rows))),
    ];
  });
}

/** An axis: numbers as they are, over decades by their logarithm; words by their place. */
function dimension(label, values) {
  if (!values.every(isNumber)) {
    const words = distinct(values.map(String)).sort();
    return { label: plain(label), values: values.map((value) => words.indexOf(String(value))), tickvals: words.map((_, i) => i), ticktext: words.map(plain) };
  }
  const [low, high] = [Math.min(...values), Math.max(...values)];
  if (low <= 0 || high / low < 50) return { label: plain(label), values };
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) ticks.push(power);
  return { label: plain(label), values: values.map(Math.log10), tickvals: ticks, ticktext: ticks.map((power) => (10 ** power).toPrecision(1)) };
}

function parallelChart(study, done, keys) {
  const shared = keys.filter((key) => done.every((trial) => key in trial.params));
  const short = (key) => key.split(".").slice(-2).join(".");
  const dimensions = shared.map((key) => dimension(short(key), done.map((trial) => trial.params[key])));
  const values = done.map((trial) => trial.value);
  return {
    traces: [{ type: "parcoords", line: { color: values, colorscale: "Viridis", reversescale: study.direction === "minimize" }, dimensions: [...dimensions, dimension(study.metric.split("/").slice(-1)[0], values)],
      labelfont: { size: 11, color: css("--text") }, tickfont: { size: 10, color: css("--muted") }, rangefont: { size: 9, color: "rgba(0,0,0,0)" } }],
    layout: { margin: { l: 60, r: 50, t: 46, b: 24 } },
  };
}

function historyChart(study, done, sign) {
  const ordered = [...done].sort((a, b) => a.number - b.number);
  let best = -Infinity;
  const line = ordered.map((trial) => sign * (best = Math.max(best, sign * trial.value)));
  return {
    traces: [
      { x: ordered.map((trial) => trial.number), y: line, mode: "lines", line: { shape: "hv", width: 2, color: paint(0).colour }, hoverinfo: "skip" },
      { x: ordered.map((trial) => trial.number), y: ordered.map((trial) => trial.value), mode: "markers", marker: { size: 7, color: paint(1).colour }, hovertemplate: "trial %{x}: %{y:.4~g}<extra></extra>" },
    ],
    layout: { xaxis: axis("trial"), yaxis: axis(study.metric) },
  };
}
