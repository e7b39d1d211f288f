// The theme, and what is started when the page is there.

const THEMES = ["auto", "light", "dark"];
let chosen = "auto";

function remembered() {
  try {
    return localStorage.getItem("theme") ?? "auto";
  } catch {
    return "auto"; // a browser may refuse it to local files
  }
}

function setTheme(theme) {
  chosen = theme;
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const button = document.getElementById("theme");
  button.textContent = `Theme: ${theme}`;
  button.setAttribute("aria-label", `Theme: ${theme === "auto" ? "as the system" : theme}`);
}

function redrawAll() {
  for (const box of document.querySelectorAll("[data-drawn]")) drawChart(box);
  for (const details of document.querySelectorAll("details.curves[open]")) details.dispatchEvent(new Event("redraw"));
}

function makeTheme() {
  setTheme(remembered());
  document.getElementById("theme").addEventListener("click", () => {
    const theme = THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length];
    try {
      localStorage.setItem("theme", theme);
    } catch {
      // it holds until the page is closed
    }
    setTheme(theme);
    redrawAll();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
}

// Paper is white and narrow, and nothing on it opens: what says more than the page's tables is opened, the rest left out.
function preparePaper() {
  document.documentElement.classList.add("printing");
  document.documentElement.dataset.theme = "light";
  for (const details of document.querySelectorAll("details.remarks:not([open]), details.as-table:not([open]), details.behind:not([open]):has(.note)")) {
    details.dataset.printed = "";
    details.open = true;
  }
  for (const box of document.querySelectorAll("[data-chart]")) drawChart(box);
}

function leavePaper() {
  document.documentElement.classList.remove("printing");
  setTheme(chosen);
  for (const details of document.querySelectorAll("[data-printed]")) {
    delete details.dataset.printed;
    details.open = false;
  }
  redrawAll();
}

function makePrint() {
  window.addEventListener("beforeprint", preparePaper);
  window.addEventListener("afterprint", leavePaper);
}

makeTheme();
if (matchMedia("(max-width: 60rem)").matches) document.getElementById("contents").open = false;
for (const table of document.querySelectorAll("table.sortable")) makeSortable(table);
makeLedger();
makeRuns();
makeLive();
drawWhenSeen();
makePrint();
