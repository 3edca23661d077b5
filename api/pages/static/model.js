// What of a network could be pruned: found out when somebody asks.
import { ask } from "./api.js";

const button = document.getElementById("analyse");
button?.addEventListener("click", async () => {
  const said = document.getElementById("analyse-said");
  button.disabled = true;
  said.textContent = "A worker looks…";
  try {
    let answer;
    do answer = await ask("GET", `/v1/models/${button.dataset.model}/prunability?wait=30`);
    while (answer.status);
    location.reload();
  } catch (error) {
    said.textContent = error.message;
    button.disabled = false;
  }
});
