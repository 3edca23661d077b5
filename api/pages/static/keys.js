// Keys: a new one is shown once.
import { ask } from "./api.js";

const form = document.getElementById("new-key");
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const said = document.getElementById("key-said");
  const scopes = [...form.querySelectorAll("[name=scope]:checked")].map((each) => each.value);
  if (!scopes.length) {
    said.textContent = "Choose what the key may do.";
    return;
  }
  try {
    const key = await ask("POST", "/v1/keys", { name: form.querySelector("#name").value, scopes });
    said.replaceChildren("Copy it now, it is shown once: ");
    const text = document.createElement("code");
    text.textContent = key.key;
    said.append(text);
    form.reset();
  } catch (error) {
    said.textContent = error.message;
  }
});
