// Features in the plane, coloured by what is known of each link, beside the map of the same links.

function embeddingsView(entries, chosen) {
  const having = (runs) => runs.filter((run) => run.embeddings.length);
  const all = having(DATA.runs);
  if (!all.length) {
    return [emptyNote("No features yet", "Write them with ", h("code", {}, "lightning predict --config runs/EXPERIMENT/RUN_ID/config.yaml --ckpt_path best"), " and make the report again: they are brought to the plane and shown here, coloured by line of sight, beam, position and domain.")];
  }
  const runs = chosen ? having(entries.flatMap((entry) => entry.runs)) : all.slice(0, 4);
  if (!runs.length) return [emptyNote("None of the selected runs has features", `These have: ${all.slice(0, 6).map((run) => run.id).join(", ")}${all.length > 6 ? " …" : ""}`)];
  const colours = distinct(runs.flatMap((run) => run.embeddings.flatMap((each) => each.colours.map((colour) => colour.name))));
  const encoders = distinct(runs.flatMap((run) => run.embeddings.map((each) => each.name)));
  if (!colours.includes(state.colour)) state.colour = colours[0];
  if (!encoders.includes(state.encoder)) state.encoder = encoders[0];
  const tools = h("div", { class: "tools" },
    h("label", {}, "Colour by", choice("colour", colours.map((name) => [name, name]))),
    encoders.length > 1 ? h("label", {}, "Encoder", choice("encoder", encoders.map((name) => [name, name.replace(/_/g, " ")]))) : null,
    h("span", { class: "muted" }, "Select with the lasso in one chart: the same links light up in the other."));
  const cards = runs.flatMap((run) => {
    const found = run.embeddings.find((each) => each.name === state.encoder);
    return found ? [embeddingCard(run, found)] : [];
  });
  return [tools, h("div", { class: "grid wide" }, cards)];
}

function embeddingCard(run, embedding) {
  const colour = embedding.colours.find((each) => each.name === state.colour);
  const of = (name) => embedding.colours.find((each) => each.name === name)?.values;
  const [x, y] = [of("position x [m]"), of("position y [m]")];
  const places = [];
  const linked = (traces, layout) => chart(() => ({ traces, layout, after: (place) => link(place, places) }), "tall");
  const title = `${embedding.method} of ${embedding.name.replace(/_/g, " ")}`;
  const note = embedding.method === "PCA" ? "PCA: pip install 'csi-foundation[umap]' for UMAP" : `${embedding.x.length} of the links`;
  const bare = { showgrid: false, zeroline: false, showticklabels: false };
  const plane = linked(pointTraces(embedding.x, embedding.y, colour, true), { xaxis: axis(title, bare), yaxis: axis("", bare), dragmode: "pan", showlegend: Boolean(colour?.classes), legend: legend() });
  if (!x || !y) return panelCard(run.id, note, plane);
  const map = linked(pointTraces(x, y, colour, false), { xaxis: axis("x [m]", { showgrid: false, zeroline: false }), yaxis: axis("y [m]", { showgrid: false, zeroline: false, scaleanchor: "x" }), dragmode: "pan" });
  return panelCard(run.id, note, h("div", { class: "pair" }, plane, map));
}

const legend = () => ({ orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 11 }, itemsizing: "constant" });

/** Points by class, each with a place in the legend, or by number, with a scale. */
function pointTraces(x, y, colour, scale) {
  const index = x.map((_, i) => i);
  const base = { type: "scatter", mode: "markers" };
  if (!colour) return [{ ...base, x, y, customdata: index, marker: { size: 4, color: css("--accent") } }];
  if (!colour.classes) {
    const bar = { thickness: 8, outlinewidth: 0, tickfont: { size: 10, color: css("--muted") }, title: { text: plain(colour.name), side: "right", font: { size: 11, color: css("--muted") } } };
    return [{ ...base, x, y, customdata: index, marker: { size: 4.5, color: colour.values, colorscale: "Viridis", showscale: scale, colorbar: bar }, hovertemplate: `${plain(colour.name)}: %{marker.color}<extra></extra>` }];
  }
  return colour.classes.map((name, number) => {
    const kept = index.filter((i) => colour.values[i] === number);
    return { ...base, name: plain(name), x: kept.map((i) => x[i]), y: kept.map((i) => y[i]), customdata: kept, marker: { size: 4.5, color: paint(number).colour, opacity: 0.8 }, hovertemplate: `${plain(name)}<extra></extra>` };
  });
}

/** Ties two charts of the same links: what is selected in one is selected in the other. */
function link(place, places) {
  places.push(place);
  place.on("plotly_selected", (event) => {
    const other = places.find((each) => each !== place);
    if (!other || !other.data) return;
    const picked = event ? new Set(event.points.map((point) => point.customdata)) : null;
    const selected = other.data.map((trace) => (picked ? trace.customdata.flatMap((number, i) => (picked.has(number) ? [i] : [])) : null));
    plotly.restyle(other, { selectedpoints: selected });
  });
}
