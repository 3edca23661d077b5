// The list of jobs as they go on: told by the server that something is new, it asks for the rows.
import "./api.js";

const LOOK_MS = 3000;
const rows = document.getElementById("rows");
if (rows.dataset.live !== undefined) {
  const source = new EventSource("/jobs/events");
  let asking = false;
  let again = false;
  const refresh = async () => {
    if (asking) {
      again = true;
      return;
    }
    asking = true;
    do {
      again = false;
      const address = new URL(location.href);
      address.searchParams.set("part", "true");
      const response = await fetch(address, { headers: { Accept: "text/html" } });
      if (response.redirected) location.reload();
      if (response.ok) {
        const focused = document.activeElement?.getAttribute("href") ?? document.activeElement?.dataset?.post;
        rows.innerHTML = await response.text();
        if (focused) rows.querySelector(`[href="${focused}"], [data-post="${focused}"]`)?.focus();
      }
    } while (again);
    asking = false;
  };
  source.addEventListener("changed", refresh);
  addEventListener("pagehide", () => source.close());
  // Jobs of others, of which nothing is told, move on before those whose turn has not come.
  setInterval(() => rows.querySelector("[data-place]") && !document.hidden && refresh(), LOOK_MS);
}
