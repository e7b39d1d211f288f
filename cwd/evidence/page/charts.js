"use strict";
// Charts: drawn by plotly when they come into view. The library is executed on first use, so that the page opens at once.

const DATA = JSON.parse(document.getElementById("data").textContent);
const PAPER = "published";
let loading = null;

function library() {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script);
    if (window.Plotly) resolve(window.Plotly);
    else reject(new Error("the plotting library did not start"));
  });
  return loading;
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Colours

function channels(colour) {
  const hex = /^#(..)(..)(..)$/.exec(colour);
  if (hex) return hex.slice(1).map((part) => parseInt(part, 16));
  return colour.match(/[\d.]+/g).slice(0, 3).map(Number);
}

function luminance(rgb) {
  const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// The colour as it is where it stands out from the page by 3 to 1 (WCAG 1.4.11), else away from the page until it does.
function seen(colour) {
  const ground = luminance(channels(getComputedStyle(document.body).backgroundColor));
  const away = ground > 0.5 ? 0 : 255;
  let rgb = channels(colour);
  for (let i = 0; i < 12; i++) {
    const [high, low] = [luminance(rgb), ground].sort((a, b) => b - a);
    if ((high + 0.05) / (low + 0.05) >= 3) break;
    rgb = rgb.map((c) => Math.round(c + (away - c) * 0.15));
  }
  return `rgb(${rgb.join(",")})`;
}

function faint(colour, alpha) {
  return `rgba(${channels(seen(colour)).join(",")},${alpha})`;
}

function dash(lengths) {
  return lengths.length ? lengths.map((one) => `${one}px`).join(",") : "solid";
}

function layout(more = {}) {
  const ink = getComputedStyle(document.body).color;
  const grid = `rgba(${channels(ink).join(",")},0.13)`;
  const axis = { gridcolor: grid, zeroline: false, linecolor: grid, automargin: true, tickfont: { size: 11 } };
  const { xaxis = {}, yaxis = {}, ...rest } = more;
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, family: getComputedStyle(document.body).fontFamily, size: 12 },
    hoverlabel: { bgcolor: getComputedStyle(document.body).backgroundColor, font: { color: ink }, namelength: -1 },
    margin: { l: 48, r: 8, t: 30, b: 40 },
    showlegend: false,
    dragmode: TOUCH ? false : "zoom",
    height: 270,
    ...rest,
    xaxis: { ...axis, ...xaxis },
    yaxis: { ...axis, ...yaxis },
  };
}

const OPTIONS = { responsive: true, displayModeBar: false };
const TOUCH = matchMedia("(pointer: coarse)").matches; // there a drag scrolls the page, and a tap shows the values

// Figures

// Lambda's axis holds zero: it stands half a decade below the smallest other value.
function position(scale, xs) {
  if (scale !== "symlog") return (x) => x;
  const least = Math.min(...xs.filter((x) => x > 0));
  return (x) => (x > 0 ? Math.log10(x) : Math.log10(least) - 0.5);
}

function xAxis(panel, at, xs) {
  const title = { text: panel.x, font: { size: 12 } };
  const ticks = [...new Set(xs)].sort((a, b) => a - b);
  if (panel.scale === "symlog") return { title, tickvals: ticks.map(at), ticktext: ticks.map(String) };
  if (panel.scale === "log")
    return { title, type: "log", tickvals: ticks, ticktext: ticks.map((x) => `${(x / 1e6).toPrecision(2)}M`) };
  return { title };
}

function panelTraces(panel, at, hidden) {
  const traces = [];
  for (const line of panel.lines) {
    if (hidden.has(line.label)) continue;
    const x = line.x.map(at);
    if (line.low && line.low.some((low, i) => low !== line.high[i])) {
      const [xs, ys] = [[...x, ...x.slice().reverse()], [...line.high, ...line.low.slice().reverse()]];
      traces.push({ x: xs, y: ys, fill: "toself", fillcolor: faint(line.colour, 0.18), line: { width: 0 }, hoverinfo: "skip", mode: "lines" });
    }
    const path = panel.kind === "path";
    traces.push({
      x, y: line.y, name: line.label, mode: line.x.length <= 12 && !path ? "lines+markers" : "lines",
      line: { color: seen(line.colour), width: 2, dash: dash(line.dash) },
      marker: { size: 6 },
      customdata: line.x.map((value, i) => [value, line.low ? line.y[i] - line.low[i] : 0]),
      hovertemplate: path ? "%{x:.4f}, %{y:.4f}" : line.low ? "%{y:.4f} ± %{customdata[1]:.4f}" : "%{y:.4f}",
    });
    if (path)
      traces.push({ x: x.slice(-1), y: line.y.slice(-1), mode: "markers", name: `${line.label}, end`, marker: { symbol: "star", size: 9, color: getComputedStyle(document.body).color } });
  }
  return traces;
}

async function drawPanel(node, panel, hidden) {
  const plotly = await library();
  const xs = panel.lines.flatMap((line) => line.x);
  const at = position(panel.scale, xs);
  const yaxis = { title: { text: panel.y, font: { size: 12 } } };
  if (panel.kind === "path") Object.assign(yaxis, { scaleanchor: "x" });
  const shape = layout({
    title: { text: panel.title, font: { size: 13 }, x: 0, xanchor: "left", xref: "paper", y: 0.97 },
    hovermode: panel.kind === "path" ? "closest" : "x unified",
    xaxis: { ...xAxis(panel, at, xs), unifiedhovertitle: { text: `${panel.x} %{customdata[0]}` } },
    yaxis,
  });
  await plotly.react(node, panelTraces(panel, at, hidden), shape, OPTIONS);
  describe(node, `${panel.title || panel.y}: ${panel.y} by ${panel.x}, ${panel.lines.map((line) => line.label).join(", ")}; the numbers are in the tables below`);
}

// To those who do not see it a chart is an image with a name, not the hundred bits of text on its axes.
function describe(node, text) {
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", text);
  document.getElementById("js-plotly-tester")?.setAttribute("aria-hidden", "true"); // where the library measures text
}

function legend(lines, hidden, redraw) {
  const box = element("div", { class: "legend", role: "group", "aria-label": "Lines: press to hide or show" });
  for (const line of lines) {
    const sample = element("i");
    sample.style.borderTopColor = seen(line.colour);
    sample.style.borderTopStyle = line.dash.length ? "dashed" : "solid";
    const button = element("button", { type: "button", "aria-pressed": String(!hidden.has(line.label)) }, sample, line.label);
    button.addEventListener("click", () => {
      if (!hidden.delete(line.label)) hidden.add(line.label);
      button.setAttribute("aria-pressed", String(!hidden.has(line.label)));
      redraw();
    });
    box.append(button);
  }
  return box;
}

async function drawFigure(box, figure) {
  const hidden = (box.hidden_lines ??= new Set());
  const lines = [...new Map(figure.panels.flatMap((panel) => panel.lines).map((line) => [line.label, line])).values()];
  const nodes = figure.panels.map(() => element("div"));
  const redraw = () => Promise.all(nodes.map((node, i) => drawPanel(node, figure.panels[i], hidden)));
  box.replaceChildren(
    legend(lines, hidden, redraw),
    element("div", { class: figure.panels.length === 1 ? "panels single" : "panels" }, ...nodes),
    element("p", { class: "hint" }, `${TOUCH ? "Tap for values." : "Drag to zoom, double-click to go back."} Press a name to hide its line.`),
  );
  await redraw();
}

// Differences, seed by seed

function differenceTraces(claim) {
  const ink = getComputedStyle(document.body).color;
  const rows = claim.rows.slice().reverse();
  const seeds = rows.flatMap((row) => row.values.map(([seed, value], i) => ({ row, seed, value, runs: row.runs[i] })));
  const told = rows.filter((row) => row.low !== null);
  const printed = rows.filter((row) => row.published !== null);
  const link = seen(DATA.colours.paper);
  return [
    { x: seeds.map((one) => one.value), y: seeds.map((one) => one.row.where), customdata: seeds.map((one) => [one.seed, one.runs[0] ?? ""]), mode: "markers", name: "seed", marker: { size: 8, color: `rgba(${channels(ink).join(",")},0.28)` }, hovertemplate: "seed %{customdata[0]}: %{x:+.5f}<extra></extra>" },
    { x: told.map((row) => row.mean), y: told.map((row) => row.where), mode: "markers", name: "mean", marker: { size: 9, color: ink },
      error_x: { type: "data", symmetric: false, array: told.map((row) => row.high - row.mean), arrayminus: told.map((row) => row.mean - row.low), color: ink, thickness: 1.6, width: 4 },
      customdata: told.map((row) => [row.low, row.high, row.verdict]), hovertemplate: "mean %{x:+.5f} [%{customdata[0]:+.5f}, %{customdata[1]:+.5f}]<br>%{customdata[2]}<extra></extra>" },
    { x: printed.map((row) => row.published), y: printed.map((row) => row.where), mode: "markers", name: PAPER, marker: { symbol: "diamond-open", size: 11, color: link, line: { width: 2 } }, hovertemplate: "published %{x:+.5f}<extra></extra>" },
  ];
}

function spoken(row) {
  const parts = [`${row.where}, mean ${row.mean.toPrecision(3)}`];
  if (row.low !== null) parts.push(`interval ${row.low.toPrecision(3)} to ${row.high.toPrecision(3)}`);
  if (row.published !== null) parts.push(`published ${row.published.toPrecision(3)}`);
  return [...parts, row.verdict].join(", ");
}

async function drawDifferences(box, chart) {
  const plotly = await library();
  const nodes = chart.claims.map(() => element("div"));
  box.replaceChildren(
    element("p", { class: "hint" }, "Faint dots: one seed each, a click opens its run. Solid: mean and 95% interval. Hollow diamond: the paper's. Dotted: the bound that the claim names."),
    element("div", { class: "panels wide" }, ...nodes),
  );
  await Promise.all(chart.claims.map(async (claim, i) => {
    const ink = getComputedStyle(document.body).color;
    const shapes = claim.bounds.map((x) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: ink, width: 1, dash: "dot" } }));
    const shape = layout({
      title: { text: claim.claim, font: { size: 13 }, x: 0, xanchor: "left", xref: "paper", y: 1, yref: "container", yanchor: "top", pad: { t: 6 } },
      height: 84 + 26 * claim.rows.length, margin: { l: 20, r: 14, t: 30, b: 34 }, hovermode: "closest", shapes,
      yaxis: { type: "category", range: [-0.6, claim.rows.length - 0.4] },
    });
    await plotly.react(nodes[i], differenceTraces(claim), shape, OPTIONS);
    describe(nodes[i], `${claim.claim}: ${claim.rows.map((row) => spoken(row)).join("; ")}`);
    nodes[i].on("plotly_click", (event) => {
      const key = event.points[0].data.name === "seed" && event.points[0].customdata[1];
      if (key) location.hash = `run-${key}`;
    });
  }));
}

// Curves of single runs: a list of {label, arm, key, curves: {name: [steps, values]}}

const CURVES = {
  eval_loss: "evaluation loss (nats)", train_loss: "training loss (nats)", grad_rms: "RMS of the gradient",
  strict_ratio: "mask ratio", rms_x: "RMS of the parameters",
};
const MOST_LINES = 200;

function linesOf(keys) {
  return keys.filter((key) => DATA.runs[key]).map((key) => {
    const { label, arm, optimizer, size, curves } = DATA.runs[key];
    const found = Object.entries(curves).map(([name, [steps, values]]) => [name, [DATA.steps[steps], values]]);
    return { label: label ?? key, arm, optimizer, size, key, curves: Object.fromEntries(found) };
  });
}

// A labelled choice that keeps what was chosen when the chart is drawn again; none where there is nothing to choose.
function choice(box, name, values, redraw) {
  const before = box.querySelector(`select[name="${name}"]`)?.value;
  const select = element("select", { name }, ...values.map(([value, text]) => element("option", { value }, text)));
  if (values.some(([value]) => value === before)) select.value = before;
  select.addEventListener("change", redraw);
  return element("label", {}, `${name} `, select);
}

function distinct(lines, name) {
  return [...new Set(lines.map((line) => line[name]).filter(Boolean))];
}

async function drawCurves(box, lines) {
  const names = Object.keys(CURVES).filter((name) => lines.some((line) => line.curves[name]));
  if (!names.length) return void box.replaceChildren(element("p", { class: "hint" }, "No curves are recorded."));
  const hidden = (box.hidden_lines ??= new Set());
  const node = box.querySelector(".js-plotly-plot") ?? element("div"); // drawn again, it keeps what was zoomed
  const [tools, hint] = [element("div", { class: "tools" }), element("p", { class: "hint" })];
  const redraw = () => {
    const wanted = Object.fromEntries([...tools.querySelectorAll("select")].map((select) => [select.name, select.value]));
    const mine = lines.filter((line) => ["optimizer", "size"].every((name) => !wanted[name] || line[name] === wanted[name]));
    const more = mine.length > MOST_LINES ? ` The first ${MOST_LINES} of ${mine.length} runs.` : "";
    hint.textContent = `A line for each run; a click opens it. The steep beginning is cut off: double-click shows all.${more}`;
    return drawLines(node, mine.slice(0, MOST_LINES), wanted.curve, hidden);
  };
  tools.append(choice(box, "curve", names.map((name) => [name, CURVES[name]]), redraw));
  for (const name of ["optimizer", "size"]) {
    const values = distinct(lines, name);
    if (values.length > 1) tools.append(choice(box, name, [["", "all"], ...values.map((value) => [value, value])], redraw));
  }
  const arms = distinct(lines, "arm").filter((arm) => DATA.colours.lines[arm]);
  tools.append(legend(arms.map((arm) => ({ label: arm, ...DATA.colours.lines[arm] })), hidden, redraw));
  box.replaceChildren(tools, node, hint);
  await redraw();
}

// From a tenth of the steps on, a loss decides the range: its steep beginning would leave the rest flat.
function lateRange(curves) {
  const last = Math.max(0, ...curves.flatMap(([steps]) => steps.slice(-1)));
  const late = curves.flatMap(([steps, values]) => values.filter((_, i) => steps[i] >= 0.1 * last));
  if (late.length < 2) return undefined;
  const [low, high] = [Math.min(...late), Math.max(...late)];
  const room = 0.05 * (high - low) + 1e-9;
  return [low - room, high + room];
}

async function drawLines(node, lines, name, hidden) {
  const plotly = await library();
  const shown = lines.filter((line) => line.curves[name] && !hidden.has(line.arm));
  const traces = shown.map((line) => {
    const style = DATA.colours.lines[line.arm] ?? { colour: DATA.colours.paper, dash: [] };
    const [x, y] = line.curves[name];
    return {
      x, y, name: line.label, customdata: x.map(() => line.key), mode: x.length > 1 ? "lines" : "markers",
      line: { color: faint(style.colour, shown.length > 12 ? 0.6 : 1), width: 1.4, dash: dash(style.dash) },
      hovertemplate: "step %{x}: %{y:.5g}<extra>%{fullData.name}</extra>",
    };
  });
  const range = name.endsWith("loss") ? lateRange(shown.map((line) => line.curves[name])) : undefined;
  const shape = layout({
    height: 340, hovermode: "closest", margin: { l: 48, r: 8, t: 10, b: 40 }, uirevision: name,
    xaxis: { title: { text: "step" } }, yaxis: { title: { text: CURVES[name] }, range },
  });
  await plotly.react(node, traces, shape, { ...OPTIONS, doubleClick: "autosize" });
  const ends = shown.map((line) => line.curves[name][1].at(-1));
  const told = ends.length ? `, at the end ${Math.min(...ends).toPrecision(4)} to ${Math.max(...ends).toPrecision(4)}` : "";
  describe(node, `${CURVES[name]} of ${shown.length} runs by step${told}`);
  node.removeAllListeners?.("plotly_click");
  node.on("plotly_click", (event) => { location.hash = `run-${event.points[0].customdata}`; });
}

// When

function drawChart(box) {
  const chart = DATA.charts[box.dataset.chart];
  box.dataset.drawn = "true";
  return chart.kind === "figure" ? drawFigure(box, chart) : drawDifferences(box, chart);
}

function drawWhenSeen() {
  const watch = new IntersectionObserver((seenNow) => {
    for (const one of seenNow.filter((entry) => entry.isIntersecting)) {
      watch.unobserve(one.target);
      drawChart(one.target);
    }
  }, { rootMargin: "250px" });
  for (const box of document.querySelectorAll("[data-chart]")) watch.observe(box);
}
