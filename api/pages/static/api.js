// Requests of pages to the service's own API: the cookie says who asks.
export class Refused extends Error {
  constructor(problem, status) {
    super(problem.detail ?? `The service answered ${status}.`);
    this.problem = problem;
    this.status = status;
  }
}

export async function ask(method, path, body, headers = {}) {
  const response = await fetch(path, {
    method,
    credentials: "same-origin",
    headers: { Accept: "application/json", ...(body === undefined ? {} : { "Content-Type": "application/json" }), ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const text = await response.text();
  let answer = {};
  try {
    answer = text ? JSON.parse(text) : {};
  } catch {
    answer = { detail: `The service answered ${response.status}.` };
  }
  if (response.status === 401) location.assign(`/sign-in?expired=1&next=${encodeURIComponent(location.pathname + location.search)}`);
  if (!response.ok) throw new Refused(answer, response.status);
  return answer;
}

export function say(text, bad = false) {
  const place = document.getElementById("said") ?? document.getElementById("live-note");
  if (!place) return;
  place.textContent = text;
  place.classList.toggle("bad", bad);
}

// Buttons that do one thing: `data-post` or `data-delete` is its address.
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-post], [data-delete]");
  if (!button) return;
  const { post, delete: gone, ask: question, done, reload, follow } = button.dataset;
  if (question && !confirm(question)) return;
  button.disabled = true;
  try {
    const answer = await ask(post ? "POST" : "DELETE", post ?? gone);
    if (follow !== undefined) location.assign(`/jobs/${answer.id}`);
    else if (reload !== undefined) location.reload();
    else say(done ?? "Done.");
  } catch (error) {
    say(error.message, true);
    button.disabled = false;
  }
});
