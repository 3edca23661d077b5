// Files on their way: by drop or by choice, with progress.
import { ask } from "./api.js";

export function size(bytes) {
  for (const unit of ["B", "kB", "MB"]) {
    if (bytes < 1000) return `${unit === "B" ? bytes : bytes.toFixed(1)} ${unit}`;
    bytes /= 1000;
  }
  return `${bytes.toFixed(2)} GB`;
}

// Gives the stored object; `show` is called with bytes sent and bytes in all.
function send(kind, file, show) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const name = file.name.replace(/\.[^.]+$/, "").slice(0, 200) || kind;
    request.open("POST", `/v1/${kind}?name=${encodeURIComponent(name)}&wait=60`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.addEventListener("progress", (event) => show(event.loaded, event.total));
    request.addEventListener("load", () => {
      let answer = {};
      try {
        answer = JSON.parse(request.responseText);
      } catch {
        // Whatever stands in between answered.
      }
      if (request.status < 300) resolve(answer);
      else reject(new Error([answer.detail ?? `The service answered ${request.status}.`, answer.hint].filter(Boolean).join(" ")));
    });
    request.addEventListener("error", () => reject(new Error("The connection broke. Choose the file again.")));
    request.send(file);
  });
}

// Gives an object once it was checked, however long that takes.
async function checked(kind, stored) {
  let seen = stored;
  while (seen.state === "checking") {
    await new Promise((resolve) => setTimeout(resolve, 500));
    seen = await ask("GET", `/v1/${kind}/${stored.id}`);
  }
  if (seen.state !== "ready") throw new Error([seen.problem?.message, seen.problem?.hint].filter(Boolean).join(" ") || `It is ${seen.state}.`);
  return seen;
}

// Makes a place take files; `done` is called with what was stored.
export function takesFiles(place, done) {
  const kind = place.dataset.upload;
  const input = place.querySelector("input[type=file]");
  const bar = place.querySelector("progress");
  const said = place.querySelector(".upload-said");
  const take = async (file) => {
    if (!file) return;
    bar.hidden = false;
    bar.value = 0;
    said.classList.remove("bad");
    said.textContent = `Sending ${file.name}`;
    try {
      const stored = await send(kind, file, (sent, all) => {
        bar.value = all ? sent / all : 0;
        said.textContent = sent < all ? `${size(sent)} of ${size(all)}` : `${size(all)} are there, and are being checked…`;
      });
      const ready = await checked(kind, stored);
      said.textContent = `${file.name} is ready.`;
      done(ready);
    } catch (error) {
      said.textContent = error.message;
      said.classList.add("bad");
    } finally {
      bar.hidden = true;
    }
  };
  input.addEventListener("change", () => take(input.files[0]));
  for (const kind_ of ["dragenter", "dragover"]) {
    place.addEventListener(kind_, (event) => {
      event.preventDefault();
      place.classList.add("over");
    });
  }
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    place.classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
}
