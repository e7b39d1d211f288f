// A run: its configuration, environments, result and curves, in a dialog that has an address of its own (#run-KEY).

function pairsTable(caption, pairs) {
  const body = element("tbody");
  for (const [name, value] of pairs) {
    const text = typeof value === "string" ? value : JSON.stringify(value);
    body.append(element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, text)));
  }
  const table = element("table", {}, element("caption", {}, caption), body);
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, table);
}

function folded(title, open, ...children) {
  const made = element("details", {}, element("summary", {}, title), ...children);
  made.open = open;
  return made;
}

function flat(value, prefix = "") {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return [[prefix, value]];
  return Object.entries(value).flatMap(([name, one]) => flat(one, prefix ? `${prefix}.${name}` : name));
}

// The page keeps of a configuration what differs from the commonest, as numbers of DATA.differences: [key, [value]], or
// [key, []] where the key is not there.
function configOf(run) {
  const own = Object.fromEntries(run.config.map((number) => DATA.differences[number]));
  const whole = Object.entries({ ...Object.fromEntries(Object.entries(DATA.base).map(([k, v]) => [k, [v]])), ...own });
  return whole.filter(([, found]) => found.length).map(([name, [value]]) => [name, value]).sort(([a], [b]) => (a < b ? -1 : 1));
}

function showRun(key) {
  const run = DATA.runs[key];
  const dialog = document.getElementById("run");
  if (!run) return;
  document.getElementById("run-title").textContent = `${run.label ?? run.optimizer ?? "run"} (${key})`;
  const curves = element("div");
  const parts = [
    element("p", {}, `${run.state}, step ${run.step}${run.steps ? ` of ${run.steps}` : ""}; ${run.scale}${run.size ? `, stands for ${run.size}` : ""}; data ${run.data ?? "unknown"}; last written ${run.updated ?? "unknown"}`),
    ...(run.message ? [element("p", { class: "mark" }, run.message)] : []),
    ...(run.traceback ? [folded("Traceback", true, element("pre", {}, run.traceback))] : []),
    curves,
    folded("Result", true, pairsTable("summary.json", Object.entries(run.summary))),
    folded("Configuration", false, pairsTable("config.json", configOf(run))),
    ...run.environments.map(([started, number]) =>
      folded(`Environment, started ${started ?? "?"}`, false, pairsTable("environment.jsonl", flat(DATA.environments[number])))),
    element("p", {}, "In: ", ...run.artifacts.flatMap((anchor) => [element("a", { href: `#${anchor}` }, anchor), " "])),
  ];
  document.getElementById("run-body").replaceChildren(...parts);
  for (const link of dialog.querySelectorAll("p a")) link.addEventListener("click", () => dialog.close());
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  if (Object.keys(run.curves).length) drawCurves(curves, linesOf([key]));
}

function showFromAddress() {
  const found = /^#run-([0-9a-f]+)$/.exec(location.hash);
  if (found) showRun(found[1]);
}

// Curves below an artifact, or of the runs that the list's filters let through; drawn when opened.
function makeCurves(details) {
  const slot = details.querySelector(".slot");
  const draw = () => {
    if (!details.open) return;
    const rows = details.dataset.from ? [...document.getElementById(details.dataset.from).tBodies[0].rows] : [];
    const keys = details.dataset.keys ? details.dataset.keys.split(" ") : rows.filter((row) => !row.hidden).map((row) => row.dataset.key);
    drawCurves(slot, linesOf(keys));
  };
  details.addEventListener("toggle", draw);
  details.addEventListener("redraw", draw);
  document.querySelector(`form[data-table="${details.dataset.from}"]`)?.addEventListener("filtered", draw);
}

function makeRuns() {
  for (const details of document.querySelectorAll("details.curves")) makeCurves(details);
  makeFilters(document.querySelector('form[data-table="runs-table"]'));
  document.querySelector('form[data-table="runs-table"]').addEventListener("input", () => { document.getElementById("all-runs").open = true; });
  window.addEventListener("hashchange", showFromAddress);
  document.getElementById("run").addEventListener("close", () => {
    if (location.hash.startsWith("#run-")) history.replaceState(null, "", location.pathname + location.search);
  });
  showFromAddress();
}
