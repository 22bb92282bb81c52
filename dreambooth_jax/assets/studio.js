"use strict";
// Everything works without this script but live parts, dropping, painting and sliders.
const one = (selector, from = document) => from.querySelector(selector);
const all = (selector, from = document) => [...from.querySelectorAll(selector)];

function tell(text) {
  const place = one("#told");
  place.textContent = text;
  clearTimeout(tell.timer);
  tell.timer = setTimeout(() => { place.textContent = ""; }, 6000);
}

async function send(address, body) {
  const answer = await fetch(address, { method: "POST", body, headers: { accept: "application/json" } });
  const found = await answer.json().catch(() => ({ message: `The server answered ${answer.status}.` }));
  if (found.message) tell(found.message);
  return answer.ok ? found : null;
}

// Parts that change: only those that differ are sent, and only those are replaced.
async function refresh() {
  const address = document.body.dataset.live;
  if (!address || document.hidden) return;
  const seen = all("[data-seen]").map((part) => `${part.id}:${part.dataset.seen}`).join(",");
  try {
    const answer = await fetch(`${address}?seen=${seen}`);
    if (!answer.ok) return;
    const found = await answer.json();
    for (const [id, [digest, html]] of Object.entries(found.parts)) {
      const part = document.getElementById(id);
      if (!part) continue;
      const held = part.contains(document.activeElement) ? document.activeElement : null;
      if (held && held.matches("input, textarea, select") && held.type !== "range") continue;
      const values = all("input[type=range]", part).map((input) => [input.id, input.value, input.max]);
      const open = new Map(all("details[data-keep]", part).map((each) => [each.dataset.keep, each.open]));
      const log = one("pre.log", part);
      const top = log && log.scrollTop + log.clientHeight < log.scrollHeight - 8 ? log.scrollTop : null;
      const name = held && held.id ? `#${held.id}` : held && held.matches("button") ? "button" : "";
      part.innerHTML = html;
      part.dataset.seen = digest;
      for (const each of all("details[data-keep]", part)) {
        if (open.has(each.dataset.keep)) each.open = open.get(each.dataset.keep);
      }
      for (const [id, value, max] of values) {  // at the end it stays at the end
        const input = document.getElementById(id);
        if (!input) continue;
        if (value !== max) input.value = value;
        input.dispatchEvent(new Event("input", { bubbles: true }));
      }
      if (name && one(name, part)) one(name, part).focus();
      settle(part, top);
    }
    const list = one("ul.cards[data-count]");
    if (found.count !== undefined && String(found.count) !== (list ? list.dataset.count : "0")) location.reload();
  } catch (error) { /* the server is away: the next look tells */ }
}

function settle(part, top = null) {
  const log = one("pre.log", part);
  if (log) log.scrollTop = top === null ? log.scrollHeight : top;
}

// Sliders: the moment of the pictures, the step of the losses, the wipe between two pictures.
document.addEventListener("input", (event) => {
  const input = event.target;
  if (input.id === "moment") {
    for (const each of all("[data-moment]")) each.hidden = each.dataset.moment !== input.value;
    const label = input.dataset.labels.split("|")[input.value];
    input.setAttribute("aria-valuetext", label);
    input.nextElementSibling.textContent = label;
  } else if (input.closest(".curves")) {
    readCurves(input.closest(".curves"), Number(input.value));
  } else if (input.dataset.wipe !== undefined) {
    const over = one("img + img", input.closest("figure"));
    over.style.clipPath = `inset(0 0 0 ${input.value}%)`;
  } else if (input.id === "filter") {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const each of all("[data-filter]")) {
      each.hidden = !words.every((word) => each.dataset.filter.includes(word));
    }
  }
});

function readCurves(box, index) {
  const data = JSON.parse(box.dataset.curves);
  const at = data.steps[index], first = data.steps[0], last = data.steps[data.steps.length - 1];
  one("output", box).textContent = at;
  one("input", box).setAttribute("aria-valuetext", `step ${at}`);
  for (const cell of all("[data-value]", box)) cell.textContent = data.values[cell.dataset.value][index];
  const svg = one(".plot > svg", box), cursor = one(".cursor", box);
  cursor.hidden = last === first;
  cursor.style.left = `${svg.offsetLeft || svg.getBoundingClientRect().left - one(".plot", box).getBoundingClientRect().left}px`;
  cursor.style.marginLeft = `${svg.getBoundingClientRect().width * (at - first) / (last - first || 1)}px`;
}

document.addEventListener("pointermove", (event) => {
  const plot = event.target.closest && event.target.closest(".curves .plot");
  if (!plot) return;
  const box = plot.closest(".curves"), where = one("svg", plot).getBoundingClientRect();
  const steps = JSON.parse(box.dataset.curves).steps;
  const step = steps[0] + (event.clientX - where.left) / where.width * (steps[steps.length - 1] - steps[0]);
  let index = 0;
  steps.forEach((each, k) => { if (Math.abs(each - step) < Math.abs(steps[index] - step)) index = k; });
  one("input", box).value = index;
  readCurves(box, index);
});

// Pictures that a click enlarges.
let shown = null;
function enlarge(button) {
  shown = button;
  const dialog = one("#large");
  one("img", dialog).src = button.dataset.large;
  one("img", dialog).alt = button.dataset.label;
  one("img", dialog).className = button.classList.contains("pixels") ? "pixels" : "";
  one("p", dialog).textContent = button.dataset.label;
  if (!dialog.open) dialog.showModal();
}
function leaf(by) {
  const list = all("[data-large]").filter((each) => each.checkVisibility());
  enlarge(list[(list.findIndex((each) => each === shown) + by + list.length) % list.length]);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.large) enlarge(button);
  else if (button.dataset.to) button.dataset.to === "0" ? one("#large").close() : leaf(Number(button.dataset.to));
  else if (button.dataset.copy !== undefined) {
    const text = one("pre", button.parentElement).textContent;
    navigator.clipboard.writeText(text).then(() => tell("Copied."), () => tell("Select the text to copy it."));
  } else if (button.dataset.paint) openBrush(button);
  else if (button.dataset.brush) brush[button.dataset.brush]();
});
document.addEventListener("keydown", (event) => {
  if (!one("#large").open) return;
  if (event.key === "ArrowRight") leaf(1);
  if (event.key === "ArrowLeft") leaf(-1);
});

// Photos that are dropped, one request each; captions are saved without leaving the page.
async function upload(files, address) {
  let last = null;
  for (const [k, file] of [...files].entries()) {
    tell(`Photo ${k + 1} of ${files.length}: ${file.name}`);
    const body = new FormData();
    body.append("photo", file);
    last = (await send(address, body)) || last;
  }
  if (last) location.reload();
}
const drop = one("#drop");
if (drop) {
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") upload(event.dataTransfer.files, drop.action);
    });
  }
  one("input", drop).addEventListener("change", (event) => upload(event.target.files, drop.action));
}
document.addEventListener("submit", (event) => {
  if (event.target.dataset.quiet === undefined) return;
  event.preventDefault();
  send(event.target.action, new FormData(event.target));
});
// What the form of a new run holds is kept while photos are added.
const kept = one('main form button[name="action"]') && one('main form button[name="action"]').form;
if (kept && location.pathname.startsWith("/new/")) {
  const key = `studio:${location.pathname}`;
  if (!one("#checked")) {
    const before = JSON.parse(sessionStorage.getItem(key) || "{}");
    for (const [name, value] of Object.entries(before)) {
      const input = kept.elements.namedItem(name);
      if (input && value) input.value = value;
    }
  }
  kept.addEventListener("input", () => {
    sessionStorage.setItem(key, JSON.stringify(Object.fromEntries(new FormData(kept))));
  });
  const checked = one("#checked");
  if (checked) checked.scrollIntoView({ block: "center" });
}

// The mask: white on black, painted over the photo.
const brush = {
  undo() { if (this.before.length) this.pen.putImageData(this.before.pop(), 0, 0); },
  clear() { this.all("#000"); },
  fill() { this.all("#fff"); },
  all(colour) {
    this.keep();
    this.pen.fillStyle = colour;
    this.pen.fillRect(0, 0, this.canvas.width, this.canvas.height);
  },
  close() { one("#brush").close(); },
  keep() {
    this.before.push(this.pen.getImageData(0, 0, this.canvas.width, this.canvas.height));
    if (this.before.length > 20) this.before.shift();
  },
  size() { return Number(one("#brush-size").value) / 400 * Math.max(this.canvas.width, this.canvas.height); },
  line(x, y) {
    const pen = this.pen;
    pen.strokeStyle = one("#brush-erase").checked ? "#000" : "#fff";
    pen.lineWidth = this.size() * 2;
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    pen.moveTo(this.x, this.y);
    pen.lineTo(x + 0.01, y);
    pen.stroke();
    [this.x, this.y] = [x, y];
  },
  async save() {
    const blob = await new Promise((done) => this.canvas.toBlob(done, "image/png"));
    if (this.target) { this.target(blob); this.close(); return; }
    if (await send(this.address, blob)) location.reload();
  },
};

async function openBrush(button) {
  const dialog = one("#brush"), canvas = one("canvas", dialog), photo = one("img", dialog);
  photo.src = button.dataset.paint;
  await photo.decode();
  Object.assign(brush, {
    canvas, pen: canvas.getContext("2d", { willReadFrequently: true }), before: [], address: button.dataset.save,
    x: photo.naturalWidth / 2, y: photo.naturalHeight / 2,
  });
  const scale = Math.max(1, 512 / Math.max(photo.naturalWidth, photo.naturalHeight));
  canvas.width = Math.round(photo.naturalWidth * scale);
  canvas.height = Math.round(photo.naturalHeight * scale);
  brush.pen.fillStyle = "#000";
  brush.pen.fillRect(0, 0, canvas.width, canvas.height);
  if (button.dataset.mask) {
    const mask = new Image();
    mask.src = button.dataset.mask;
    await mask.decode();
    brush.pen.drawImage(mask, 0, 0, canvas.width, canvas.height);
  }
  [brush.x, brush.y] = [canvas.width / 2, canvas.height / 2];
  dialog.showModal();
}

const canvas = one("#brush canvas");
if (canvas) {
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width * canvas.width, (event.clientY - box.top) / box.height * canvas.height];
  };
  let down = false;
  canvas.addEventListener("pointerdown", (event) => {
    down = true;
    canvas.setPointerCapture(event.pointerId);
    brush.keep();
    [brush.x, brush.y] = place(event);
    brush.line(brush.x, brush.y);
  });
  canvas.addEventListener("pointermove", (event) => { if (down) brush.line(...place(event)); });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => { down = false; });
  canvas.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const by = brush.size();
    if (way) {
      brush.x = Math.min(Math.max(brush.x + way[0] * by, 0), canvas.width);
      brush.y = Math.min(Math.max(brush.y + way[1] * by, 0), canvas.height);
      tell(`${Math.round(brush.x / canvas.width * 100)} % across, ${Math.round(brush.y / canvas.height * 100)} % down`);
    } else if (event.key === " ") {
      brush.keep();
      brush.line(brush.x, brush.y);
    } else return;
    event.preventDefault();
  });
}

for (const part of all("[data-seen]")) settle(part);
for (const box of all(".curves")) readCurves(box, Number(one("input", box).value));
if (document.body.dataset.live) setInterval(refresh, 2000);
