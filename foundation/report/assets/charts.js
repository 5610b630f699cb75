// Charts: one style for both themes, drawn when they come into sight.

// After Okabe and Ito, told apart by colour-blind eyes; lighter on dark ground. Beyond eight, lines are dashed.
const PALETTE = {
  light: ["#0072b2", "#d55e00", "#009e73", "#b8559a", "#c98a00", "#2f9fd8", "#6a4fa3", "#5f6b7a"],
  dark: ["#58aee6", "#ff8f4d", "#35cfa0", "#e79aca", "#f5bf4f", "#9bd6fb", "#b79df0", "#b4bdca"],
};
const DASHES = ["solid", "dash", "dot", "dashdot"];
const STROKES = ["", "5 3", "2 3", "6 2 2 2"];
const NUMBERS = "Cividis"; // a scale of numbers that colour-blind eyes read in order

let plotly = null; // the library, once it is unpacked
const waiting = new Map(); // chart -> how it is drawn, until it is in sight
const queue = new Set(); // charts in sight, drawn one at a time so that the page answers between them
const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) entry.isIntersecting ? queue.add(entry.target) : queue.delete(entry.target);
  drawQueued();
}, { rootMargin: "200px" });
let drawing = null;

function drawQueued() {
  if (plotly && !drawing) drawing = drawAll().finally(() => { drawing = null; });
  return drawing;
}

async function drawAll() {
  for (const place of queue) { // a set may grow while it is walked
    queue.delete(place);
    drawNow(place);
    await pause();
  }
}

/** Lets the browser paint, and answer what was clicked or typed. */
const pause = () => new Promise((resolve) => { const channel = new MessageChannel(); channel.port1.onmessage = () => resolve(); channel.port2.postMessage(0); });

const theme = () => document.documentElement.dataset.theme ?? "light";
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
/** Text for the library, which would read tags in it. */
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function paint(slot) {
  const colours = PALETTE[theme()];
  const turn = Math.floor(slot / colours.length) % DASHES.length;
  return { colour: colours[slot % colours.length], dash: DASHES[turn], stroke: STROKES[turn] };
}

function faded(colour, share) {
  const [r, g, b] = [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
  return `rgba(${r},${g},${b},${share})`;
}

function axis(title, more = {}) {
  return {
    title: { text: plain(title), font: { size: 11, color: css("--muted") }, standoff: 6 }, gridcolor: css("--line"), zerolinecolor: css("--line"),
    linecolor: css("--strong"), tickfont: { size: 11, color: css("--muted") }, automargin: true, exponentformat: "power", ...more,
  };
}

/** A place for a chart, drawn when it is near the window. `make` returns traces and layout. */
function chart(make, name = "chart") {
  const place = h("div", { class: `chart ${name}` });
  waiting.set(place, make);
  observer.observe(place);
  return place;
}

function drawNow(place) {
  const make = waiting.get(place);
  if (!plotly || !make || !place.isConnected) return;
  waiting.delete(place);
  observer.unobserve(place);
  const { traces, layout = {}, after } = make();
  const base = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 46, r: 12, t: 8, b: 38 }, showlegend: false, hovermode: "closest",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--text") },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--strong"), font: { color: css("--text"), size: 12 }, namelength: 40 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--muted"), activecolor: css("--accent") },
  };
  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["autoScale2d", "zoomIn2d", "zoomOut2d", "toggleSpikelines"] };
  plotly.newPlot(place, traces, { ...base, ...layout }, config);
  if (after) after(place);
}

/** Forgets the charts of a view that is replaced. */
function clearCharts(element) {
  for (const place of element.querySelectorAll(".chart")) {
    waiting.delete(place);
    queue.delete(place);
    observer.unobserve(place);
    if (plotly && place.data) plotly.purge(place);
  }
}

function panelCard(title, note, ...content) {
  return h("article", { class: "card plot" }, h("header", {}, h("h3", { title }, title), note ? h("span", { class: "muted" }, note) : null), content);
}

function emptyNote(title, ...text) {
  return h("div", { class: "card empty" }, h("p", {}, h("strong", {}, title), ...text));
}

const swatch = (entry) => h("span", { class: "dot", style: `background:${paint(entry.slot).colour}` });
