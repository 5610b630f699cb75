// What is shown: the runs, what is filtered, grouped and selected, and the small helpers that all views use.

let DATA = { runs: [], tunings: [], warnings: [], walls: {}, better: {} };

const state = {
  query: "", facets: {}, grouped: true, sort: { key: "created", up: false }, selected: new Set(), open: new Set(),
  columns: null, tab: "curves", axis: "step", log: false, smooth: 0, metric: "", settings: false, colour: "", encoder: "",
};

const FACETS = ["experiment", "model", "head", "mode", "data"];
const SHOWN = 10; // entries drawn while nothing is selected
const slots = new Map(); // entry key -> number of its colour, kept while it is shown

/** Makes an element; text is only ever set as text, so that no name of a run can be markup. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") element.style.cssText = value;
    else if (["checked", "value", "disabled", "open"].includes(key)) element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const byId = (id) => document.getElementById(id);
const distinct = (values) => [...new Set(values)];
const known = (values) => values.filter((value) => value !== null && value !== undefined && value !== "");
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function spread(values) {
  if (values.length < 2) return 0;
  const middle = mean(values);
  const deviation = Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1));
  return deviation > 1e-12 * Math.abs(middle) ? deviation : 0; // equal values differ from their mean by rounding
}

function number(value) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2);
  if (size >= 1e4) return Math.round(value).toLocaleString("en");
  return value.toFixed(size >= 100 ? 1 : size >= 1 ? 2 : 3).replace("-", "−");
}

function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Whether a small (-1) or a large (1) value of a metric is good; 0 where its name does not tell. */
const better = (metric) => ({ min: -1, max: 1 })[DATA.better[metric]] ?? 0;

/** The best of values, or null where there is nothing to choose. */
function bestOf(metric, values) {
  const numbers = values.filter(isNumber);
  if (numbers.length < 2 || !better(metric) || distinct(numbers).length < 2) return null;
  return better(metric) > 0 ? Math.max(...numbers) : Math.min(...numbers);
}

function matches(run) {
  const words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
  return words.every((word) => run.haystack.includes(word)) && FACETS.every((key) => !state.facets[key] || String(run[key] ?? "") === state.facets[key]);
}

/** Runs as rows or lines: those that differ in their seed alone are one entry, if they are to be. */
function entriesOf(runs) {
  const groups = new Map();
  for (const run of runs) {
    const key = state.grouped ? run.group : run.id;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(run);
  }
  return [...groups].map(([key, members]) => {
    const alone = members.length === 1;
    return { key: alone ? members[0].id : key, runs: members, label: alone ? members[0].name : members[0].unseeded };
  });
}

/** What the views below the table draw: the selected runs, or the first ones that are listed. */
function shownEntries() {
  const chosen = DATA.runs.filter((run) => state.selected.has(run.id));
  const entries = chosen.length ? entriesOf(chosen) : sortedEntries().slice(0, SHOWN);
  const labels = entries.map((entry) => entry.label);
  for (const entry of entries) {
    if (labels.filter((label) => label === entry.label).length > 1) entry.label = `${entry.runs[0].experiment}/${entry.label}`;
  }
  const keys = new Set(entries.map((entry) => entry.key));
  for (const key of [...slots.keys()]) if (!keys.has(key)) slots.delete(key);
  for (const entry of entries) {
    if (!slots.has(entry.key)) {
      const taken = new Set(slots.values());
      let slot = 0;
      while (taken.has(slot)) slot += 1;
      slots.set(entry.key, slot);
    }
    entry.slot = slots.get(entry.key);
  }
  return entries;
}

const metricOf = (entry, key) => entry.runs.map((run) => run.metrics[key]).filter(isNumber);

/** The metrics of some runs in the order of interest: what chooses checkpoints first, then what most of them have. */
function metricsOf(runs) {
  const count = new Map();
  const first = new Set();
  for (const run of runs) {
    for (const key of Object.keys(run.metrics)) count.set(key, (count.get(key) ?? 0) + 1);
    if (run.monitor) first.add(run.monitor.replace(/^val\//, "test/")).add(run.monitor);
  }
  const rank = (key) => (key.startsWith("test/") ? 0 : 2) + (first.has(key) ? 0 : 1);
  return [...count.keys()].sort((a, b) => rank(a) - rank(b) || count.get(b) - count.get(a) || a.localeCompare(b));
}

/** Keeps tab, filter and selection in the address, so that a reload or a link shows the same. */
function remember() {
  const kept = { tab: state.tab, q: state.query, seeds: state.grouped ? "" : "apart", runs: [...state.selected].join("|") };
  for (const key of FACETS) kept[key] = state.facets[key] ?? "";
  const hash = new URLSearchParams(Object.entries(kept).filter(([, value]) => value)).toString();
  try { history.replaceState(null, "", `#${hash}`); } catch { /* a page inside another may not */ }
}

function recall() {
  const kept = new URLSearchParams(location.hash.slice(1));
  const ids = new Set(DATA.runs.map((run) => run.id));
  state.tab = kept.get("tab") ?? state.tab;
  state.query = kept.get("q") ?? "";
  state.grouped = kept.get("seeds") !== "apart";
  for (const id of (kept.get("runs") ?? "").split("|")) if (ids.has(id)) state.selected.add(id);
  for (const key of FACETS) if (DATA.runs.some((run) => String(run[key] ?? "") === kept.get(key))) state.facets[key] = kept.get(key);
}
