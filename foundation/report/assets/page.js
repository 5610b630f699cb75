// Puts the page together: unpacks the data, then the library, and draws again what a change concerns.

function decoded(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text); // browsers since 2025, at once
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i += 1) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

async function unpack(id) {
  const stream = new Blob([decoded(byId(id).textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

const VIEWS = [["curves", "Curves"], ["compare", "Compare"], ["embeddings", "Embeddings"], ["tuning", "Tuning"]];

function renderTabs() {
  const shown = VIEWS.filter(([key]) => key !== "tuning" || DATA.tunings.length);
  if (!shown.some(([key]) => key === state.tab)) state.tab = "curves";
  const move = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const place = shown.findIndex(([key]) => key === state.tab);
    openTab(shown[(place + step + shown.length) % shown.length][0]);
  };
  byId("tabs").replaceChildren(...shown.map(([key, title]) => h("button", {
    type: "button", role: "tab", id: `tab-${key}`, "data-key": key, "aria-selected": String(state.tab === key), "aria-controls": "panel", tabindex: state.tab === key ? 0 : -1, onclick: () => openTab(key), onkeydown: move,
  }, title)));
}

function openTab(key) {
  state.tab = key;
  renderTabs();
  byId(`tab-${key}`).focus({ preventScroll: true });
  renderPanel({});
  remember();
}

function renderChips(entries, chosen) {
  const line = (entry) => {
    const { colour, stroke } = paint(entry.slot);
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    for (const [name, value] of Object.entries({ d: "M1 4H19", stroke: colour, "stroke-width": 3, "stroke-dasharray": stroke, "stroke-linecap": stroke ? "butt" : "round" })) path.setAttribute(name, value);
    svg.setAttribute("viewBox", "0 0 20 8");
    svg.append(path);
    return svg;
  };
  const drop = (entry) => { entry.runs.forEach((run) => state.selected.delete(run.id)); refresh({}); };
  const chips = entries.map((entry) => h("span", { class: "chip", title: entry.runs.map((run) => run.id).join("\n") }, line(entry), entry.label, entry.runs.length > 1 ? h("span", { class: "muted" }, `×${entry.runs.length}`) : null,
    chosen ? h("button", { type: "button", "aria-label": `Deselect ${entry.label}`, onclick: () => drop(entry) }, "×") : null));
  const count = sortedEntries().length;
  const note = chosen ? h("button", { type: "button", class: "chip", onclick: () => { state.selected.clear(); refresh({}); } }, "Clear") : count > entries.length ? h("span", { class: "muted", style: "font-size:12px;white-space:nowrap" }, `the first ${entries.length} of ${count}: select rows to choose`) : null;
  byId("chips").replaceChildren(...chips, ...(note ? [note] : []));
}

function renderPanel({ focus }) {
  const entries = shownEntries();
  const chosen = state.selected.size > 0;
  const panel = byId("panel");
  const height = panel.offsetHeight; // kept while it is empty, or the page would jump to its top
  clearCharts(panel);
  panel.style.minHeight = `${height}px`;
  const views = { curves: curvesView, compare: compareView, embeddings: embeddingsView, tuning: tuningView };
  panel.setAttribute("aria-labelledby", `tab-${state.tab}`);
  panel.replaceChildren(...views[state.tab](entries, chosen));
  panel.style.minHeight = "";
  renderChips(entries, chosen);
  if (focus) focusOn(panel, focus);
}

function focusOn(place, key) {
  const found = [...place.querySelectorAll("[data-key], [data-facet]")].find((each) => each.dataset.key === key || each.dataset.facet === key);
  if (!found) return;
  found.focus({ preventScroll: true });
  if (found.type === "search") found.setSelectionRange(found.value.length, found.value.length);
}

function refresh({ focus }) {
  renderTable();
  renderFilters();
  renderColumns();
  renderPanel({});
  remember();
  if (focus) focusOn(byId("runs"), focus);
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  byId("theme").querySelector("span").textContent = name === "dark" ? "Dark" : "Light";
}

function startTheme() {
  const wanted = matchMedia("(prefers-color-scheme: dark)");
  let kept = null;
  try { kept = localStorage.getItem("csi-report-theme"); } catch { /* a file may have no storage */ }
  const apply = (name) => { setTheme(name); if (DATA.runs.length) refresh({}); };
  setTheme(kept ?? (wanted.matches ? "dark" : "light"));
  wanted.addEventListener("change", () => { if (!kept) apply(wanted.matches ? "dark" : "light"); });
  byId("theme").addEventListener("click", () => {
    kept = theme() === "dark" ? "light" : "dark";
    try { localStorage.setItem("csi-report-theme", kept); } catch { /* it is forgotten, then */ }
    apply(kept);
  });
}

function startFilters() {
  let timer = 0;
  byId("search").addEventListener("input", (event) => {
    clearTimeout(timer);
    timer = setTimeout(() => { state.query = event.target.value; renderTable(); renderPanel({}); remember(); }, 80);
  });
  byId("grouped").addEventListener("change", (event) => { state.grouped = event.target.checked; refresh({}); });
  byId("reset").addEventListener("click", () => {
    Object.assign(state, { query: "", facets: {}, grouped: true, columns: null, sort: { key: "created", up: false } });
    state.selected.clear();
    refresh({});
  });
  document.addEventListener("click", (event) => { const menu = byId("columns"); if (!menu.contains(event.target)) menu.open = false; });
  document.addEventListener("keydown", (event) => {
    const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(document.activeElement?.tagName);
    if (event.key === "/" && !typing) { event.preventDefault(); byId("search").focus(); }
    if (event.key === "Escape") byId("columns").open = false;
  });
}

function showNotes() {
  const experiments = distinct(DATA.runs.map((run) => run.experiment)).length;
  byId("facts").textContent = `${DATA.runs.length} runs · ${experiments} experiment${experiments > 1 ? "s" : ""} · made ${DATA.made}`;
  if (!DATA.warnings.length) return;
  const lines = DATA.warnings.map((line) => h("div", {}, line));
  byId("notes").append(h("details", { class: "note", open: DATA.warnings.length < 4 }, h("summary", {}, `${DATA.warnings.length} could not be read`), lines));
}

async function start() {
  startTheme();
  if (typeof DecompressionStream === "undefined") {
    byId("notes").append(h("p", { class: "note" }, "This page needs a browser of 2023 or later: Chrome 80, Firefox 113, Safari 16.4."));
    return;
  }
  DATA = JSON.parse(await unpack("data"));
  for (const run of DATA.runs) {
    const facts = ["id", "unseeded", "model", "head", "mode", "data", "state"].map((key) => run[key] ?? "");
    run.haystack = [...facts, ...Object.entries(run.config).map(([key, value]) => `${key}=${value}`)].join("\n").toLowerCase();
  }
  recall();
  startFilters();
  showNotes();
  renderTabs();
  refresh({});
  document.documentElement.dataset.ready = "table";
  document.documentElement.dataset.readyMs = String(Math.round(performance.now()));
  await new Promise((resolve) => { requestAnimationFrame(() => setTimeout(resolve)); }); // the table is painted first
  const script = document.createElement("script");
  script.textContent = await unpack("library");
  document.head.append(script);
  plotly = window.Plotly;
  await drawQueued();
  document.documentElement.dataset.ready = "all";
}

start();
