// Metrics over steps or epochs: a line a run, or a mean with a band from the lowest to the highest seed.

function curveNames(runs) {
  const points = new Map();
  for (const run of runs) for (const [name, curve] of Object.entries(run.curves)) points.set(name, Math.max(points.get(name) ?? 0, curve.v.length));
  const monitors = new Set(runs.map((run) => run.monitor));
  const rank = (name) => (monitors.has(name) ? 0 : name === "val/loss" ? 1 : name === "train/loss" ? 2 : name.startsWith("val/") ? 3 : 4);
  const single = (name) => points.get(name) < 2; // a point is no curve: last
  return [...points.keys()].sort((a, b) => single(a) - single(b) || rank(a) - rank(b) || a.localeCompare(b));
}

/** Exponential smoothing without a bias towards the first value. */
function smoothed(values, amount) {
  if (!amount) return values;
  let sum = 0, weight = 0;
  return values.map((value) => {
    if (!isNumber(value)) return value;
    sum = sum * amount + value * (1 - amount);
    weight = weight * amount + (1 - amount);
    return sum / weight;
  });
}

/** One line, over x in order: mean, lowest and highest of the runs of an entry that have a value there. */
function seriesOf(entry, name) {
  const at = new Map();
  let runs = 0;
  for (const run of entry.runs) {
    const curve = run.curves[name];
    if (!curve) continue;
    runs += 1;
    const values = smoothed(curve.v, state.smooth);
    const xs = state.axis === "epoch" && curve.e.every((epoch) => epoch !== null) ? curve.e : curve.s;
    xs.forEach((x, i) => { if (!at.has(x)) at.set(x, []); if (isNumber(values[i])) at.get(x).push(values[i]); });
  }
  const xs = [...at.keys()].sort((a, b) => a - b);
  const of = (take) => xs.map((x) => (at.get(x).length ? take(at.get(x)) : null));
  return { runs, x: xs, y: of(mean), low: of((v) => Math.min(...v)), high: of((v) => Math.max(...v)) };
}

function curveTraces(entries, name) {
  const traces = [];
  for (const entry of entries) {
    const series = seriesOf(entry, name);
    if (!series.runs) continue;
    const { colour, dash } = paint(entry.slot);
    if (series.runs > 1) {
      const edge = { x: series.x, mode: "lines", line: { width: 0, color: colour }, hoverinfo: "skip", legendgroup: entry.key };
      traces.push({ ...edge, y: series.low }, { ...edge, y: series.high, fill: "tonexty", fillcolor: faded(colour, 0.16) });
    } else if (state.smooth) {
      const raw = entry.runs.find((run) => run.curves[name]).curves[name];
      traces.push({ x: state.axis === "epoch" ? raw.e : raw.s, y: raw.v, mode: "lines", line: { width: 1, color: faded(colour, 0.28) }, hoverinfo: "skip" });
    }
    const few = series.x.length < 12;
    traces.push({
      x: series.x, y: series.y, name: plain(entry.label), mode: few ? "lines+markers" : "lines", line: { width: 2, color: colour, dash }, marker: { size: 6, color: colour },
      error_y: series.x.length === 1 && series.runs > 1 ? { type: "data", symmetric: false, array: [series.high[0] - series.y[0]], arrayminus: [series.y[0] - series.low[0]], color: colour, thickness: 1.5 } : undefined,
      hovertemplate: `%{y:.4~g}<extra>${plain(entry.label)}${series.runs > 1 ? ` (mean of ${series.runs})` : ""}</extra>`,
    });
  }
  return traces;
}

function curvesView(entries) {
  const runs = entries.flatMap((entry) => entry.runs);
  const names = curveNames(runs);
  if (!names.length) return [emptyNote("Nothing was logged", "None of these runs has a metrics.csv with values yet.")];
  const wanted = state.metric.toLowerCase();
  const shown = names.filter((name) => name.toLowerCase().includes(wanted));
  const tools = h("div", { class: "tools" },
    h("input", { type: "search", value: state.metric, placeholder: "Filter metrics", "aria-label": "Filter metrics", "data-key": "metric", oninput: (event) => { state.metric = event.target.value; renderPanel({ focus: "metric" }); } }),
    h("label", {}, "Over", choice("axis", [["step", "steps"], ["epoch", "epochs"]])),
    h("label", {}, "Smoothing", h("input", { type: "range", min: 0, max: 0.95, step: 0.05, value: state.smooth, "data-key": "smooth", "aria-label": "Smoothing", onchange: (event) => { state.smooth = Number(event.target.value); renderPanel({ focus: "smooth" }); } }), h("span", { class: "muted" }, state.smooth ? state.smooth.toFixed(2) : "off")),
    h("label", { class: "switch" }, h("input", { type: "checkbox", checked: state.log, "data-key": "log", onchange: (event) => { state.log = event.target.checked; renderPanel({ focus: "log" }); } }), "Log scale"),
    entries.some((entry) => entry.runs.length > 1) ? h("span", { class: "muted" }, "bands: lowest to highest seed") : null);
  const cards = shown.map((name) => panelCard(name, { 1: "↑ better", "-1": "↓ better", 0: "" }[better(name)], chart(() => ({
    traces: curveTraces(entries, name),
    layout: { xaxis: axis(state.axis), yaxis: axis("", { type: state.log ? "log" : "linear", tickformat: ".3~g" }), hovermode: "x unified" },
  }))));
  return [tools, cards.length ? h("div", { class: "grid" }, cards) : emptyNote("No such metric", "Change the filter of metrics.")];
}

function choice(key, options) {
  const select = h("select", { "data-key": key, onchange: (event) => { state[key] = event.target.value; renderPanel({ focus: key }); } }, options.map(([value, title]) => h("option", { value }, title)));
  select.value = state[key];
  return select;
}
