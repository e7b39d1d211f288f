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

makeTheme();
if (matchMedia("(max-width: 60rem)").matches) document.getElementById("contents").open = false;
for (const table of document.querySelectorAll("table.sortable")) makeSortable(table);
makeLedger();
makeRuns();
makeLive();
drawWhenSeen();
window.addEventListener("beforeprint", () => {
  for (const box of document.querySelectorAll("[data-chart]:not([data-drawn])")) drawChart(box);
});
