// A sweep while it runs: only where scripts/report.py --serve serves the page.

const EVERY = 4000; // milliseconds

function liveRow(run, told) {
  const cells = [
    element("td", {}, run.key === null ? "-" : DATA.runs[run.key] ? element("a", { class: "run", href: `#run-${run.key}` }, run.key.slice(0, 8)) : element("span", { class: "run" }, run.key.slice(0, 8))),
    element("td", {}, run.label),
    element("td", { class: `state ${run.state}` }, run.state),
    element("td", { class: "number" }, `${run.step} of ${run.steps ?? "?"}`),
    element("td", { class: "number" }, run.loss === null ? "-" : run.loss.toFixed(4)),
  ];
  if (run.note) cells[1].append(element("p", { class: "note" }, run.note));
  if (run.traceback) cells[1].append(folded("traceback", false, element("pre", {}, run.traceback)));
  return element("tr", { "data-told": told }, ...cells);
}

// A row that says the same stays as it is: what a reader has opened or stands on must not be taken away.
function showRows(body, runs) {
  const wanted = runs.map((run) => [JSON.stringify({ ...run, curves: null }), run]);
  const before = new Map([...body.rows].map((row) => [row.dataset.told, row]));
  const texts = new Set(wanted.map(([told]) => told));
  for (const [told, row] of before) if (!texts.has(told)) row.remove();
  wanted.forEach(([told, run], i) => {
    if (body.rows[i]?.dataset.told !== told) body.insertBefore(before.get(told) ?? liveRow(run, told), body.rows[i] ?? null);
  });
}

function showLive(now) {
  say(now.counts);
  const notes = [...now.notes];
  if (now.unlisted) notes.push(`${now.unlisted} more are not listed below`);
  document.getElementById("live-notes").replaceChildren(...notes.map((note) => element("li", {}, note)));
  document.getElementById("live-again").hidden = !now.changed;
  document.getElementById("live-bar").max = Math.max(now.wanted, 1);
  document.getElementById("live-bar").value = now.worked;
  showRows(document.querySelector("#live-runs tbody"), now.runs);
  document.getElementById("live-table").hidden = !now.runs.length;
  const lines = now.runs.filter((run) => Object.keys(run.curves).length);
  const box = document.getElementById("live-curves");
  if (!lines.length) box.replaceChildren();
  else if (!box.contains(document.activeElement)) drawCurves(box, lines);
}

// A status is read aloud when it changes: not every four seconds, when nothing has.
function say(text) {
  const status = document.getElementById("live-text");
  if (status.textContent !== text) status.textContent = text;
}

async function follow() {
  try {
    const answer = await fetch("progress.json", { cache: "no-store" });
    showLive(await answer.json());
  } catch {
    say("The server does not answer; it may have been stopped.");
  }
  setTimeout(follow, EVERY);
}

function makeLive() {
  if (!location.protocol.startsWith("http")) return;
  document.getElementById("live").hidden = false;
  document.getElementById("live-link").hidden = false;
  follow();
}
