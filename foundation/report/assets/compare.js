// Runs side by side: results, settings that differ, distributions of errors, maps, confusion, pictures.

function compareView(entries, chosen) {
  if (!chosen || entries.length < 2) {
    const first = () => { for (const entry of sortedEntries().slice(0, 2)) entry.runs.forEach((run) => state.selected.add(run.id)); refresh({}); };
    const note = chosen ? "One is selected: tick another one in the table." : "Tick two or more in the table above. With seeds grouped, all seeds of a row are compared as one.";
    return [emptyNote("Select runs to compare", note), h("p", { style: "text-align:center;margin-top:-28px;padding-bottom:24px" }, h("button", { type: "button", class: "ghost primary", onclick: first }, "Compare the first two of the table"))];
  }
  return [
    h("h2", {}, "Results"), resultsTable(entries),
    ...settingsPart(entries), ...cdfPart(entries), ...mapPart(entries), ...confusionPart(entries), ...picturePart(entries),
  ];
}

function head(entries, corner) {
  return h("thead", {}, h("tr", {}, h("th", {}, corner), entries.map((entry) => h("th", { scope: "col", title: entry.runs.map((run) => run.id).join("\n") }, swatch(entry), entry.label))));
}

function resultsTable(entries) {
  const keys = metricsOf(entries.flatMap((entry) => entry.runs));
  const tests = keys.filter((key) => key.startsWith("test/"));
  const cells = (tests.length ? tests : keys).map((key) => {
    const means = entries.map((entry) => { const values = metricOf(entry, key); return values.length ? mean(values) : null; });
    const best = bestOf(key, means);
    const largest = Math.max(...means.filter(isNumber).map(Math.abs), Number.MIN_VALUE);
    const row = entries.map((entry, i) => {
      if (!isNumber(means[i])) return h("td", { class: "muted" }, entry.runs.some((run) => key in run.metrics) ? "NaN" : "–");
      const values = metricOf(entry, key);
      const against = i > 0 && isNumber(means[0]) ? means[i] - means[0] : null;
      return h("td", {}, h("span", { class: "figure" }, h("span", { class: means[i] === best ? "best" : "" }, number(means[i])),
        values.length > 1 ? h("span", { class: "sd" }, ` ± ${number(spread(values))}`) : null),
        h("span", { class: "track", "aria-hidden": "true" }, h("span", { class: "amount", style: `width:${(Math.abs(means[i]) / largest) * 70}px;background:${paint(entry.slot).colour}` })),
        against === null ? null : h("span", { class: "sd" }, `${against > 0 ? "+" : ""}${number(against)}`));
    });
    return h("tr", {}, h("th", { scope: "row", title: key }, key.replace(/^test\//, ""), h("span", { class: "muted" }, { 1: " ↑", "-1": " ↓", 0: "" }[better(key)])), row);
  });
  const extra = [["training time", (run) => run.wall_s, duration], ["training links", (run) => run.n_train, number0], ["parameters", (run) => run.params_total, number0]];
  for (const [title, take, text] of extra) {
    const values = entries.map((entry) => entry.runs.map(take).filter(isNumber));
    if (values.some((each) => each.length)) cells.push(h("tr", {}, h("th", { scope: "row" }, title), values.map((each) => h("td", {}, each.length ? text(mean(each)) : "–"))));
  }
  return h("div", { class: "card sheet-table", tabindex: 0, id: "results" }, h("table", {}, head(entries, "metric"), h("tbody", {}, cells)));
}

const number0 = (value) => Math.round(value).toLocaleString("en");

/** What an entry has set: one value, or all that its seeds have. */
function settingOf(entry, key) {
  const values = distinct(entry.runs.map((run) => run.config[key] ?? "–"));
  return values.length > 3 ? `${values.slice(0, 3).join(" | ")} | …` : values.join(" | ");
}

function settingsPart(entries) {
  const keys = distinct(entries.flatMap((entry) => entry.runs.flatMap((run) => Object.keys(run.config))));
  const differ = keys.filter((key) => distinct(entries.map((entry) => settingOf(entry, key))).length > 1);
  const shown = state.settings ? keys : differ;
  const toggle = h("label", { class: "switch", style: "margin-left:14px;font-weight:400" }, h("input", { type: "checkbox", checked: state.settings, "data-key": "settings", onchange: (event) => { state.settings = event.target.checked; renderPanel({ focus: "settings" }); } }), `all ${keys.length}`);
  const title = h("h2", {}, "Settings ", h("span", { class: "muted" }, `${differ.length} of ${keys.length} differ`), toggle);
  if (!shown.length) return [title, h("p", { class: "muted" }, keys.length ? "All settings are alike." : "These runs have no config.yaml.")];
  const rows = shown.map((key) => {
    const values = entries.map((entry) => settingOf(entry, key));
    return h("tr", { "data-setting": key }, h("th", { scope: "row", class: "code" }, key), values.map((value) => h("td", { class: `code ${value !== values[0] ? "changed" : ""}` }, value)));
  });
  return [title, h("div", { class: "card sheet-table", tabindex: 0, id: "settings" }, h("table", {}, head(entries, "setting"), h("tbody", {}, rows)))];
}

/** The plots of one kind by name: for each entry those of its runs. */
function plotsOf(entries, kind) {
  const names = distinct(entries.flatMap((entry) => entry.runs.flatMap((run) => run.plots.filter((plot) => plot.kind === kind).map((plot) => plot.name))));
  return names.map((name) => ({
    name, drawn: entries.map((entry) => ({ entry, plots: entry.runs.flatMap((run) => run.plots.filter((plot) => plot.kind === kind && plot.name === name)) })).filter((each) => each.plots.length),
  }));
}

function cdfPart(entries) {
  const cards = plotsOf(entries, "cdf").map(({ drawn }) => {
    const { title, label, unit } = drawn[0].plots[0];
    return panelCard(title, "share of test links", chart(() => ({
      traces: drawn.flatMap(({ entry, plots }) => {
        const { colour, dash } = paint(entry.slot);
        const share = plots[0].quantiles.map((_, i) => i / (plots[0].quantiles.length - 1));
        const at = (take) => share.map((_, i) => take(plots.map((plot) => plot.quantiles[i]).filter(isNumber)));
        const edge = { y: share, mode: "lines", line: { width: 0 }, hoverinfo: "skip" };
        // a band between two distribution functions is closed along both
        const band = plots.length > 1 ? [{ ...edge, x: [...at((v) => Math.min(...v)), ...at((v) => Math.max(...v)).reverse()], y: [...share, ...[...share].reverse()], fill: "toself", fillcolor: faded(colour, 0.16) }] : [];
        return [...band, { x: at(mean), y: share, name: plain(entry.label), mode: "lines", line: { width: 2, color: colour, dash }, hovertemplate: `%{y:.0%} within %{x:.3~g} ${plain(unit)}<extra>${plain(entry.label)}</extra>` }];
      }),
      layout: { xaxis: axis(`${label} [${unit}]`, { rangemode: "tozero" }), yaxis: axis("", { range: [0, 1.01], tickformat: ".0%" }) },
    }), "tall"));
  });
  return cards.length ? [h("h2", {}, "Distributions of errors"), h("div", { class: "grid wide" }, cards)] : [];
}

function mapPart(entries) {
  const parts = plotsOf(entries, "map").map(({ drawn }) => {
    const limit = Math.max(...drawn.flatMap(({ plots }) => plots.map((plot) => plot.limit)));
    const cards = drawn.map(({ entry, plots }) => panelCard(entry.label, plots.length > 1 ? `first of ${plots.length} seeds` : "", chart(() => mapChart(plots[0], limit), "tall")));
    return [h("h2", {}, drawn[0].plots[0].title, " ", h("span", { class: "muted" }, "one scale for all; ▲ base station, × training users")), h("div", { class: "grid" }, cards)];
  });
  return parts.flat();
}

function mapChart(plot, limit) {
  const walls = DATA.walls[plot.walls] ?? [];
  const sides = (first) => walls.flatMap((wall) => [wall[first], wall[first + 2], null]);
  const hover = { hoverinfo: "skip", mode: "lines" };
  return {
    traces: [
      { ...hover, x: sides(0), y: sides(1), line: { width: 1, color: css("--strong") } },
      { ...hover, mode: "markers", x: plot.trained_x, y: plot.trained_y, marker: { symbol: "x-thin", size: 4, line: { width: 1, color: css("--muted") } } },
      { x: plot.x, y: plot.y, mode: "markers", marker: { size: 5, color: plot.value, cmin: 0, cmax: limit, colorscale: NUMBERS, reversescale: theme() === "light", colorbar: { thickness: 8, outlinewidth: 0, tickfont: { size: 10, color: css("--muted") }, title: { text: `${plain(plot.label)} [${plain(plot.unit)}]`, side: "right", font: { size: 11, color: css("--muted") } } } },
        hovertemplate: `%{marker.color:.3~g} ${plain(plot.unit)}<br>x %{x:.0f} m, y %{y:.0f} m<extra></extra>` },
      { x: plot.stations_x, y: plot.stations_y, mode: "markers", marker: { symbol: "triangle-up", size: 12, color: PALETTE[theme()][1], line: { width: 1, color: css("--card") } }, hovertemplate: "base station<extra></extra>" },
    ],
    layout: {
      xaxis: axis("x [m]", { showgrid: false, zeroline: false, range: around([...plot.x, ...plot.stations_x, ...plot.trained_x]) }),
      yaxis: axis("y [m]", { showgrid: false, zeroline: false, scaleanchor: "x", range: around([...plot.y, ...plot.stations_y, ...plot.trained_y]) }),
    },
  };
}

/** A range with some room around values: buildings reach much farther than the users. */
function around(values) {
  const found = values.filter(isNumber);
  const [low, high] = [Math.min(...found), Math.max(...found)];
  const room = 0.06 * (high - low) + 5;
  return found.length ? [low - room, high + room] : undefined;
}

function confusionPart(entries) {
  const parts = plotsOf(entries, "confusion").map(({ drawn }) => {
    const cards = drawn.map(({ entry, plots }) => panelCard(entry.label, plots.length > 1 ? `sum of ${plots.length} seeds` : "", chart(() => confusionChart(plots), "tall")));
    return [h("h2", {}, `Confusion: ${drawn[0].plots[0].title} `, h("span", { class: "muted" }, "share of each true class")), h("div", { class: "grid" }, cards)];
  });
  return parts.flat();
}

function confusionChart(plots) {
  const size = plots[0].counts.length;
  const same = plots.filter((plot) => plot.counts.length === size);
  const counts = plots[0].counts.map((row, i) => row.map((_, j) => same.reduce((sum, plot) => sum + plot.counts[i][j], 0)));
  const share = counts.map((row) => { const all = row.reduce((a, b) => a + b, 0); return row.map((value) => (all ? value / all : null)); });
  const names = plots[0].classes.length === size ? plots[0].classes.map(plain) : counts.map((_, i) => i);
  const text = size <= 8 ? { text: share.map((row, i) => row.map((v, j) => (v === null ? "" : `${(100 * v).toFixed(1)} %<br>${counts[i][j]}`))), texttemplate: "%{text}", textfont: { size: 12 } } : {};
  const ground = theme() === "light" ? [[0, "#f3f6fa"], [0.5, "#6fa8d6"], [1, "#08406f"]] : [[0, "#1c222b"], [0.5, "#2f6ea5"], [1, "#b9defb"]];
  return {
    traces: [{ type: "heatmap", z: share, x: names, y: names, zmin: 0, zmax: 1, colorscale: ground, customdata: counts, ...text, colorbar: { thickness: 8, outlinewidth: 0, tickformat: ".0%", tickfont: { size: 10, color: css("--muted") } }, hovertemplate: "true %{y}, predicted %{x}: %{z:.1%} (%{customdata})<extra></extra>" }],
    layout: { xaxis: axis("predicted", { showgrid: false, constrain: "domain" }), yaxis: axis("true", { showgrid: false, autorange: "reversed", scaleanchor: "x", constrain: "domain" }) },
  };
}

function picturePart(entries) {
  const names = distinct(entries.flatMap((entry) => entry.runs.flatMap((run) => run.pictures.map((picture) => picture.name))));
  return names.flatMap((name) => {
    const cards = entries.flatMap((entry) => {
      const drawn = entry.runs.flatMap((run) => run.pictures.filter((picture) => picture.name === name).map((picture) => [run, picture])).slice(0, 1);
      return drawn.map(([run, picture]) => h("article", { class: "card plot pictures" }, h("header", {}, swatch(entry), h("h3", { title: run.id }, run.name)), h("figure", {}, h("img", { src: picture.src, alt: `${name} of ${run.id}`, loading: "lazy" }))));
    });
    return [h("h2", {}, name.replace(/_/g, " ")), h("div", { class: "grid wide" }, cards)];
  });
}
