// Files on their way: by drop or by choice, with progress, and gone on with after a break.
import { ask } from "./api.js";

export function size(bytes) {
  for (const unit of ["B", "kB", "MB"]) {
    if (bytes < 1000) return `${unit === "B" ? bytes : bytes.toFixed(1)} ${unit}`;
    bytes /= 1000;
  }
  return `${bytes.toFixed(2)} GB`;
}

const PIECE = 8 << 20;
const TRIES = 6;
const TUS = { "Tus-Resumable": "1.0.0" };

function request(method, address, headers, body, show) {
  return new Promise((resolve, reject) => {
    const made = new XMLHttpRequest();
    made.open(method, address);
    for (const [name, value] of Object.entries(headers)) made.setRequestHeader(name, value);
    if (show) made.upload.addEventListener("progress", (event) => show(event.loaded));
    made.addEventListener("load", () => resolve(made));
    made.addEventListener("error", () => reject(new Error("The connection broke.")));
    made.send(body);
  });
}

function refusal(made) {
  let answer = {};
  try {
    answer = JSON.parse(made.responseText);
  } catch {
    // Whatever stands in between answered.
  }
  return new Error([answer.detail ?? `The service answered ${made.status}.`, answer.hint].filter(Boolean).join(" "));
}

function base64(text) {
  return btoa(String.fromCharCode(...new TextEncoder().encode(text)));
}

// Where an upload of this very file broke off before, by this browser; a page that was left, or a connection that broke, loses nothing.
const memory = (file) => `upload ${file.name} ${file.size} ${file.lastModified}`;

async function begun(file) {
  const known = localStorage.getItem(memory(file));
  if (known) {
    const made = await request("HEAD", known, TUS);
    if (made.status < 300) return { address: known, offset: Number(made.getResponseHeader("Upload-Offset")) };
    localStorage.removeItem(memory(file));
  }
  const made = await request("POST", "/v1/uploads", { ...TUS, "Upload-Length": file.size, "Upload-Metadata": `filename ${base64(file.name)}` });
  if (made.status >= 300) throw refusal(made);
  const address = new URL(made.getResponseHeader("Location"), location.href).pathname;
  localStorage.setItem(memory(file), address);
  return { address, offset: 0 };
}

// Gives the id of an upload that is complete (tus 1.0); what breaks off is gone on with.
async function sent(file, show) {
  let { address, offset } = await begun(file);
  let failed = 0;
  while (offset < file.size) {
    const from = offset;
    try {
      const headers = { ...TUS, "Upload-Offset": offset, "Content-Type": "application/offset+octet-stream" };
      const made = await request("PATCH", address, headers, file.slice(offset, offset + PIECE), (bytes) => show(from + bytes));
      if (made.status >= 400 && made.status < 500 && made.status !== 409) throw Object.assign(refusal(made), { final: true });
      if (made.status >= 300) throw refusal(made);
      offset = Number(made.getResponseHeader("Upload-Offset"));
      failed = 0;
    } catch (error) {
      failed += 1;
      if (error.final || failed > TRIES) throw new Error(`${error.message} Choose the file again to go on where it broke off.`);
      await new Promise((resolve) => setTimeout(resolve, 500 * 2 ** failed));
      const made = await request("HEAD", address, TUS).catch(() => null);
      if (made && made.status < 300) offset = Number(made.getResponseHeader("Upload-Offset"));
    }
    show(offset);
  }
  return address.split("/").pop();
}

async function send(kind, file, show) {
  const name = file.name.replace(/\.[^.]+$/, "").slice(0, 200) || kind;
  const upload = await sent(file, show);
  const stored = await ask("POST", `/v1/${kind}?name=${encodeURIComponent(name)}&wait=60`, { upload });
  localStorage.removeItem(memory(file));
  return stored;
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
      const all = file.size;
      const stored = await send(kind, file, (there) => {
        bar.value = all ? there / all : 0;
        said.textContent = there < all ? `${size(there)} of ${size(all)}` : `${size(all)} are there, and are being checked…`;
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
