// Tables: sorted by the buttons in their headers, filtered by the form that names them.

// A claim with its comparisons is one body of the ledger's table; elsewhere a row stands alone.
function unitsOf(table) {
  return table.classList.contains("claims") ? [...table.tBodies] : [...table.tBodies[0].rows];
}

function textKey(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text.replaceAll(",", "").replace(/^\[/, ""));
  if (text === "" || text === "-") return null;
  return Number.isNaN(number) ? text.toLowerCase() : number;
}

// What a claim is sorted by: the first of its visible comparisons in the order that is asked for.
function claimKey(body, name, sign) {
  if (name === "order") return Number(body.dataset.order);
  const rows = [...body.rows].filter((row) => name in row.dataset && !("out" in row.dataset));
  const values = rows.map((row) => sign * Number(row.dataset[name]));
  return values.length ? sign * Math.min(...values) : null;
}

function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
}

function sortTable(table, header, column) {
  const down = header.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const sign = down ? -1 : 1;
  const name = header.dataset.sort;
  const key = name ? (unit) => claimKey(unit, name, sign) : (row) => textKey(row, column);
  const units = unitsOf(table).map((unit) => [key(unit), unit]);
  units.sort(([a], [b]) => compare(a, b, sign));
  const parent = name ? table : table.tBodies[0];
  parent.append(...units.map(([, unit]) => unit));
  if (name && name !== "order") for (const [, body] of units) sortComparisons(body, name, sign);
}

function sortComparisons(body, name, sign) {
  const rows = [...body.querySelectorAll("tr.comparison")];
  const keyed = rows.map((row) => [name in row.dataset ? Number(row.dataset[name]) : null, row]);
  keyed.sort(([a], [b]) => compare(a, b, sign));
  body.append(...keyed.map(([, row]) => row));
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    header.querySelector("button")?.addEventListener("click", () => sortTable(table, header, column));
  });
}

// Filters

function openClaim(body, open) {
  body.querySelector(".opens")?.setAttribute("aria-expanded", String(open));
  for (const row of body.querySelectorAll("tr.comparison")) row.hidden = !open || "out" in row.dataset;
}

function has(value, wanted) {
  return wanted === "" || (value ?? "").split(" ").includes(wanted);
}

// Scale, verdict and artifact are a claim's, optimizer and size its comparisons'.
function filterClaims(table, wanted) {
  const text = wanted.text.toLowerCase();
  const inner = Boolean(wanted.optimizer || wanted.size);
  let shown = 0;
  for (const body of table.tBodies) {
    const own = ["scale", "artifact"].every((name) => has(body.dataset[name], wanted[name] ?? ""));
    const verdict = !wanted.verdict || body.dataset.verdict === wanted.verdict;
    const several = body.querySelector(".opens") !== null;
    let any = false;
    for (const row of several ? body.querySelectorAll("tr.comparison") : body.rows) {
      const fits = has(row.dataset.optimizer, wanted.optimizer ?? "") && has(row.dataset.size, wanted.size ?? "");
      if (fits) delete row.dataset.out;
      else row.dataset.out = "";
      any ||= fits;
    }
    body.hidden = !(own && verdict && any && body.textContent.toLowerCase().includes(text));
    shown += !body.hidden;
    if (several) openClaim(body, inner || document.getElementById("all-comparisons").getAttribute("aria-pressed") === "true");
  }
  return `${shown} of ${table.tBodies.length} claims`;
}

function filterRows(table, wanted) {
  const text = wanted.text.toLowerCase();
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const fits = Object.entries(wanted).every(([name, value]) => name === "text" || value === "" || row.dataset[name] === value);
    row.hidden = !(fits && row.textContent.toLowerCase().includes(text));
    shown += !row.hidden;
  }
  return `${shown} of ${table.tBodies[0].rows.length} runs`;
}

function fillChoices(form, table) {
  for (const select of form.querySelectorAll("select")) {
    if (select.options.length) continue;
    const values = [...new Set([...table.tBodies[0].rows].map((row) => row.dataset[select.name]))].filter(Boolean).sort();
    select.append(element("option", { value: "" }, "all"), ...values.map((value) => element("option", { value }, value)));
  }
}

function makeFilters(form) {
  const table = document.getElementById(form.dataset.table);
  fillChoices(form, table);
  const apply = () => {
    const wanted = Object.fromEntries(new FormData(form));
    form.querySelector("output").textContent = table.id === "claims" ? filterClaims(table, wanted) : filterRows(table, wanted);
    form.dispatchEvent(new CustomEvent("filtered"));
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
  return apply;
}

function makeLedger() {
  const form = document.querySelector('form[data-table="claims"]');
  const apply = makeFilters(form);
  form.addEventListener("filtered", () => {
    for (const button of document.querySelectorAll("[data-pick]"))
      button.setAttribute("aria-pressed", String(form.elements.verdict?.value === button.dataset.pick));
  });
  for (const button of document.querySelectorAll(".opens"))
    button.addEventListener("click", () => openClaim(button.closest("tbody"), button.getAttribute("aria-expanded") !== "true"));
  const all = document.getElementById("all-comparisons");
  all.addEventListener("click", () => {
    const open = all.getAttribute("aria-pressed") !== "true";
    all.setAttribute("aria-pressed", String(open));
    all.textContent = open ? "Hide comparisons" : "Show every comparison";
    for (const body of document.getElementById("claims").tBodies) openClaim(body, open);
  });
  for (const button of document.querySelectorAll("[data-pick]"))
    button.addEventListener("click", () => {
      const select = form.elements.verdict;
      if (!select) return;
      select.value = select.value === button.dataset.pick ? "" : button.dataset.pick;
      apply();
    });
}
