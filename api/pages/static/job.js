// A job as it goes on, and points of a front that are picked.
import { ask, say } from "./api.js";
import { drawAll } from "./charts.js";

const LOOK_MS = 3000;
const live = document.getElementById("live");
const id = live.dataset.job;
const isFinal = () => live.querySelector(".state").dataset.final !== undefined;

let asking = false;
let again = false;

async function refresh() {
  if (asking) {
    again = true;
    return;
  }
  asking = true;
  do {
    again = false;
    const response = await fetch(`/jobs/${id}?part=true`, { headers: { Accept: "text/html" } });
    if (response.redirected) location.reload();
    if (!response.ok) break;
    const text = await response.text();
    const next = document.createElement("template");
    next.innerHTML = text;
    if (next.content.querySelector(".state").dataset.final !== undefined) {
      location.reload();
      return;
    }
    const open = [...live.querySelectorAll("details[open]")].map((each) => each.closest("figure")?.id);
    live.replaceChildren(next.content);
    for (const name of open) live.querySelector(`#${CSS.escape(name ?? "none")} details`)?.setAttribute("open", "");
    drawAll(live);
  } while (again);
  asking = false;
}

if (!isFinal()) {
  const source = new EventSource(`/v1/jobs/${id}/events`);
  const kinds = ["queued", "running", "cancelling", "succeeded", "failed", "cancelled", "started", "estimate", "step_started", "progress",
    "step_finished", "measuring", "warning", "finished", "waiting_for_quiet", "quiet", "paused", "resumed", "trial_queued",
    "trial_started", "trial_ended", "message"];
  for (const kind of kinds) source.addEventListener(kind, refresh);
  source.addEventListener("error", refresh);
  addEventListener("pagehide", () => source.close());
  // Others move on before a job whose turn has not come, and nothing is told of it.
  setInterval(() => live.querySelector("[data-place]") && !document.hidden && refresh(), LOOK_MS);
}

const dialog = document.getElementById("pick");
if (dialog) {
  let trial;
  const what = document.getElementById("pick-what");
  const said = document.getElementById("pick-said");
  const make = document.getElementById("pick-do");
  const open = (number) => {
    const button = document.querySelector(`[data-pick="${number}"]`);
    if (!button) {
      say(`Trial ${number} is beaten by another one in everything, so there is nothing to pick.`);
      return;
    }
    trial = number;
    document.getElementById("pick-title").textContent = `Trial ${number}`;
    what.textContent = button.dataset.what;
    document.getElementById("pick-recipe").textContent = button.dataset.recipe;
    said.textContent = "";
    make.disabled = !dialog.dataset.may;
    make.textContent = "Make it and download";
    dialog.showModal();
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-pick]");
    if (button) open(button.dataset.pick);
  });
  document.addEventListener("point", (event) => open(event.detail));
  make.addEventListener("click", async () => {
    make.disabled = true;
    try {
      const job = await ask("POST", `/v1/jobs/${id}/front/${trial}:pick`, {});
      location.assign(`/jobs/${job.id}#download`);
    } catch (error) {
      said.textContent = error.message;
      make.disabled = false;
    }
  });
}
// A job that was picked for its network: the download begins when it is there.
if (location.hash === "#download" && isFinal()) {
  const link = document.getElementById("download");
  history.replaceState(null, "", location.pathname);
  link?.click();
}
