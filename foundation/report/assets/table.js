// The table of runs: filters, sorting, groups of seeds, selection.

const FIXED = [
  { key: "name", title: "Run" },
  { key: "experiment", title: "Experiment", low: true },
  { key: "model", title: "Model" },
  { key: "head", title: "Head" },
  { key: "mode", title: "Mode" },
  { key: "data", title: "Data" },
  { key: "seed", last: true, title: "Seed", number: true, low: true },
  { key: "n_train", last: true, title: "Labels", number: true, low: true, text: (value) => (isNumber(value) ? value.toLocaleString("en") : "–") },
  { key: "wall_s", last: true, title: "Time", number: true, text: duration },
  { key: "created", last: true, title: "Started", low: true },
];
const DEFAULT_METRICS = 8;

function columns() {
  const chosen = state.columns;
  const listed = DATA.runs.filter(matches);
  const metrics = metricsOf(listed);
  const tests = metrics.filter((key) => key.startsWith("test/"));
  const shown = chosen ? metrics.filter((key) => chosen.has(key)) : (tests.length ? tests : metrics).slice(0, DEFAULT_METRICS);
  const fixed = FIXED.filter((column) => column.key === "name" || (chosen ? chosen.has(column.key) : DATA.runs.some((run) => known([run[column.key]]).length)));
  const first = fixed.filter((column) => !column.last), last = fixed.filter((column) => column.last);
  return [...first, ...shown.map((key) => ({ key, metric: true, number: true })), ...last];
}

/** The value that a row is sorted by. */
function sortValue(entry, key) {
  if (key === "name") return entry.label;
  const column = FIXED.find((each) => each.key === key);
  const values = column ? known(entry.runs.map((run) => run[key])) : metricOf(entry, key);
  if (!values.length) return null;
  return values.every(isNumber) ? mean(values) : String(values[values.length - 1]);
}

function sortedEntries() {
  const { key, up } = state.sort;
  const keyed = entriesOf(DATA.runs.filter(matches)).map((entry) => [sortValue(entry, key), entry]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null); // what has no value stands last, either way
    const order = isNumber(a) && isNumber(b) ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    return up ? order : -order;
  });
  return keyed.map(([, entry]) => entry);
}

function renderTable() {
  const shown = columns();
  const entries = sortedEntries();
  const colours = new Map(shownEntries().map((entry) => [entry.key, paint(entry.slot).colour]));
  const best = new Map(shown.filter((c) => c.metric).map((c) => [c.key, bestOf(c.key, entries.map((entry) => sortValue(entry, c.key)))]));
  byId("table").tHead.replaceChildren(h("tr", {}, shown.map(heading)));
  const rows = [];
  for (const entry of entries) {
    rows.push(row(entry, shown, colours, best, false));
    if (entry.runs.length > 1 && state.open.has(entry.key)) {
      for (const run of entry.runs) rows.push(row({ key: run.id, label: run.name, runs: [run] }, shown, colours, new Map(), true));
    }
  }
  if (!rows.length) rows.push(h("tr", {}, h("td", { colspan: shown.length }, "No run matches: change the filters or reset them.")));
  byId("table").tBodies[0].replaceChildren(...rows);
  const found = entries.reduce((sum, entry) => sum + entry.runs.length, 0);
  const picked = state.selected.size ? `, ${state.selected.size} selected` : "";
  byId("count").textContent = `${found} of ${DATA.runs.length} runs${picked}${state.grouped && found > entries.length ? `, in ${entries.length} rows: mean ± standard deviation over seeds` : ""}`;
}

function heading(column) {
  const sorted = state.sort.key === column.key;
  const arrow = sorted ? (state.sort.up ? " ↑" : " ↓") : "";
  const parts = column.metric ? column.key.replace(/^test\//, "").split("/") : [column.title];
  const click = () => {
    state.sort = { key: column.key, up: sorted ? !state.sort.up : !(column.metric && better(column.key) > 0) && column.key !== "created" };
    refresh({ focus: column.key });
  };
  const title = column.metric ? `${column.key}${{ 1: ", more is better", "-1": ", less is better", 0: "" }[better(column.key)]}` : null;
  const small = column.metric ? h("small", {}, parts.slice(0, -1).join(" / ") || "\u00a0") : null;
  return h("th", { scope: "col", class: `${column.number ? "num" : ""} ${column.low ? "low" : ""}`, "aria-sort": sorted ? (state.sort.up ? "ascending" : "descending") : "none" },
    h("button", { type: "button", "data-key": column.key, onclick: click, title }, small, `${parts[parts.length - 1]}${arrow}`));
}

function row(entry, shown, colours, best, member) {
  const count = entry.runs.filter((run) => state.selected.has(run.id)).length;
  const toggle = () => {
    for (const run of entry.runs) count === entry.runs.length ? state.selected.delete(run.id) : state.selected.add(run.id);
    refresh({ focus: entry.key });
  };
  const box = h("input", { type: "checkbox", checked: count === entry.runs.length, onchange: toggle, "data-key": entry.key, "aria-label": `Select ${entry.label}` });
  box.indeterminate = count > 0 && count < entry.runs.length;
  const fold = () => {
    state.open.has(entry.key) ? state.open.delete(entry.key) : state.open.add(entry.key);
    renderTable();
  };
  const states = distinct(entry.runs.map((run) => run.state)).filter((each) => each !== "finished");
  const colour = colours.get(entry.key);
  const cell = h("div", { class: "cell" }, box,
    h("span", { class: "dot", style: colour ? `background:${colour};border-color:${colour}` : "" }),
    entry.runs.length > 1 ? h("button", { type: "button", class: "fold", "aria-expanded": String(state.open.has(entry.key)), "aria-label": `Seeds of ${entry.label}`, onclick: fold }, "▸") : null,
    h("label", { title: entry.runs.map((run) => run.id).join("\n"), onclick: toggle }, entry.label),
    entry.runs.length > 1 ? h("span", { class: "tag" }, `×${entry.runs.length}`) : null,
    states.map((each) => h("span", { class: `tag ${each}` }, each)));
  const cells = shown.slice(1).map((column) => {
    const content = column.metric ? metricCell(entry, column.key, best.get(column.key)) : plainCell(entry, column);
    return h("td", { class: `${column.number ? "num" : "text"} ${column.low ? "low" : ""}`, title: typeof content === "string" && content.length > 24 ? content : null }, content);
  });
  return h("tr", { class: `${count ? "on" : ""} ${member ? "member" : ""}`, "data-run": entry.runs.length === 1 ? entry.runs[0].id : entry.key }, h("td", {}, cell), cells);
}

function plainCell(entry, column) {
  const values = distinct(known(entry.runs.map((run) => run[column.key])));
  if (!values.length) return "–";
  if (column.key === "seed" || column.key === "created") return values.length > 1 && column.key === "created" ? String(values[0]) : values.sort().join(", ");
  if (column.text) return column.text(mean(values));
  return values.join(", ");
}

function metricCell(entry, key, best) {
  const values = metricOf(entry, key);
  if (!values.length) return entry.runs.some((run) => key in run.metrics) ? "NaN" : "–";
  const middle = mean(values);
  const text = h("span", { class: best !== null && best !== undefined && middle === best ? "best" : "" }, number(middle));
  return values.length > 1 ? [text, h("span", { class: "sd" }, ` ± ${number(spread(values))}`)] : text;
}

function renderFilters() {
  byId("search").value = state.query;
  byId("grouped").checked = state.grouped;
  byId("facets").replaceChildren(...FACETS.flatMap((key) => {
    const values = distinct(known(DATA.runs.map((run) => run[key])).map(String)).sort();
    if (values.length < 2) return [];
    const all = h("option", { value: "" }, `All ${{ data: "data", head: "heads" }[key] ?? `${key}s`}`);
    const select = h("select", { "aria-label": `Only ${key}`, "data-facet": key, class: state.facets[key] ? "set" : "", onchange: (event) => { state.facets[key] = event.target.value; refresh({ focus: key }); } },
      all, values.map((value) => h("option", { value }, value)));
    select.value = state.facets[key] ?? "";
    return [select];
  }));
}

function renderColumns() {
  const shown = new Set(columns().map((column) => column.key));
  const pick = (key) => h("label", {}, h("input", {
    type: "checkbox", checked: shown.has(key),
    onchange: (event) => { state.columns = new Set(columns().map((c) => c.key)); event.target.checked ? state.columns.add(key) : state.columns.delete(key); renderTable(); },
  }), key.replace(/^test\//, ""));
  const metrics = metricsOf(DATA.runs);
  const titles = FIXED.slice(1).map((column) => pick(column.key));
  const tests = metrics.filter((key) => key.startsWith("test/")), others = metrics.filter((key) => !key.startsWith("test/"));
  const part = (title, keys) => (keys.length ? [h("p", { class: "muted" }, title), ...keys.map(pick)] : []);
  byId("columns").querySelector(".sheet").replaceChildren(...titles, ...part("Test", tests), ...part("Validation", others));
}
