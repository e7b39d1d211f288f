// A sweep while it runs: only where scripts/report.py --serve serves the page.

const EVERY = 4000; // milliseconds

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function liveText(now) {
  const counts = Object.entries(now.counts).map(([state, count]) => `${count} ${state}`).join(", ");
  const parts = [`${now.finished} of ${now.wanted} runs (${counts}).`];
  if (now.waiting) parts.push(`${now.waiting} more wait for others.`);
  if (now.seconds_left !== null) parts.push(`About ${duration(now.seconds_left)} left with ${now.running} at a time, from ${now.source}.`);
  else if (now.work_left) parts.push(`About ${duration(now.work_left)} of work left for one core, from ${now.source}; nothing runs now.`);
  if (now.unknown) parts.push(`Of ${now.unknown} runs nothing says how long they take.`);
  if (now.changed) parts.push("More runs have ended since this page was made: reload it.");
  return parts.join(" ");
}

function liveRow(run) {
  const cells = [
    element("td", {}, DATA.runs[run.key] ? element("a", { class: "run", href: `#run-${run.key}` }, run.key.slice(0, 8)) : element("span", { class: "run" }, run.key.slice(0, 8))),
    element("td", {}, run.label),
    element("td", { class: `state ${run.state}` }, run.state),
    element("td", { class: "number" }, `${run.step} of ${run.steps ?? "?"}`),
    element("td", { class: "number" }, run.loss === null ? "-" : run.loss.toFixed(4)),
  ];
  if (run.message) cells[1].append(element("p", { class: "note" }, run.message));
  if (run.traceback) cells[1].append(folded("traceback", false, element("pre", {}, run.traceback)));
  return element("tr", {}, ...cells);
}

function showLive(now) {
  document.getElementById("live-text").textContent = liveText(now);
  document.getElementById("live-bar").max = Math.max(now.wanted, 1);
  document.getElementById("live-bar").value = now.finished;
  const body = document.querySelector("#live-runs tbody");
  if (!body.querySelector("details[open]")) body.replaceChildren(...now.runs.map(liveRow));
  const lines = now.runs.filter((run) => Object.keys(run.curves).length);
  const box = document.getElementById("live-curves");
  if (lines.length && !box.contains(document.activeElement)) drawCurves(box, lines);
}

async function follow() {
  try {
    const answer = await fetch("progress.json", { cache: "no-store" });
    showLive(await answer.json());
  } catch {
    document.getElementById("live-text").textContent = "The server does not answer; it may have been stopped.";
  }
  setTimeout(follow, EVERY);
}

function makeLive() {
  if (!location.protocol.startsWith("http")) return;
  document.getElementById("live").hidden = false;
  document.getElementById("live-link").hidden = false;
  follow();
}
