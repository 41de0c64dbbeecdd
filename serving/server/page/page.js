// The page of `showtell serve`: each image is a card, each card sends one request to /caption.

const MAX_REQUESTS = 8; // at once; the server batches the images of all of them
const MAX_TRIES = 20; // while the server is full
const IMAGE_NAME = /\.(jpe?g|jpe|jfif|png|webp|gif|avif|bmp|tiff?|jp2|j2k)$/i;
const BROKEN = "The connection broke during the answer. Try again.";

const $ = (selector, parent = document) => parent.querySelector(selector);
const cards = []; // in the order of the page
const waiting = []; // cards whose request has not been sent
let model = null;
let numRequests = 0;

// --- Talking to the server ---

const headers = () => {
  const token = sessionStorage.getItem("token");
  return token ? { Authorization: `Bearer ${token}` } : {};
};

async function start() {
  const response = await fetch("model", { headers: headers() }).catch(() => null);
  const needsToken = response?.status === 401;
  $("#token-form").hidden = !needsToken;
  $("#work").hidden = !response?.ok;
  if (needsToken) {
    $("#token-error").textContent = sessionStorage.getItem("token") ? "The token is wrong." : "";
    $("#token").focus();
  } else if (!response?.ok) {
    $("#model").textContent = await reasonOf(response);
  } else if (!(model = await response.json().catch(() => null))) {
    $("#work").hidden = true;
    $("#model").textContent = BROKEN;
  } else {
    $("#model").textContent = `${model.name} · ${model.encoder}`;
    $("#attention-hint").hidden = !model.has_attention;
    showOptions();
  }
}

async function reasonOf(response) {
  if (!response) return "The server cannot be reached. It may have been stopped.";
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `The server answered with status ${response.status}.`;
}

function sendNext() {
  while (numRequests < MAX_REQUESTS && waiting.length) {
    const card = waiting.shift();
    numRequests++;
    caption(card).finally(() => { numRequests--; showStatus(); sendNext(); });
  }
}

async function caption(card) {
  const { file, abort } = card;
  if (file.size > model.limits.max_body_bytes - 10_000) {
    const limit = (model.limits.max_body_bytes / 1e6).toFixed(0);
    return showError(card, `The file has ${(file.size / 1e6).toFixed(1)} MB; the server takes up to ${limit} MB.`);
  }
  for (let tries = 1; ; tries++) {
    const form = new FormData();
    form.set("details", "true");
    for (const [name, value] of Object.entries(card.options)) form.set(name, value);
    form.set("images", file, "image"); // the name of the file stays here
    const request = { method: "POST", body: form, headers: headers(), signal: abort.signal };
    const response = await fetch("caption", request).catch(() => null);
    if (abort.signal.aborted) return;
    if (response?.status === 429 && tries < MAX_TRIES) {
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds * (0.75 + Math.random() / 2)));
    } else if (response?.ok) {
      const answer = await response.json().catch(() => null);
      if (abort.signal.aborted) return;
      return answer ? showResult(card, answer.results[0]) : showError(card, BROKEN);
    } else {
      if (response?.status === 401) start();
      return showError(card, await reasonOf(response));
    }
    if (abort.signal.aborted) return;
  }
}

// --- Options ---

function showOptions() {
  const form = $("#option-form");
  const groups = {};
  form.replaceChildren();
  for (const [name, schema] of Object.entries(model.options)) {
    if (name === "consensus" && !schema.default) continue; // the server does not re-rank
    const kinds = [schema.type].flat();
    const input = document.createElement("input");
    input.name = name;
    if (kinds.includes("boolean")) {
      input.type = "checkbox";
      input.defaultChecked = schema.default;
    } else {
      input.type = "number";
      input.step = kinds.includes("integer") ? 1 : "any";
      input.defaultValue = schema.default ?? "";
      if (schema.minimum !== undefined) input.min = schema.minimum;
      if (schema.maximum !== undefined) input.max = schema.maximum;
      input.required = !kinds.includes("null");
    }
    const help = document.createElement("small");
    help.textContent = schema.description;
    const label = document.createElement("label");
    label.append(name.replaceAll("_", " "), input, help);
    groups[schema["x-group"]] ??= groupOf(schema["x-group"]);
    groups[schema["x-group"]].append(label);
  }
  form.append(...Object.values(groups));
  const buttons = document.createElement("div");
  buttons.className = "buttons row";
  for (const [type, text] of [["submit", "Caption again"], ["reset", "Reset"]]) {
    const button = document.createElement("button");
    button.type = type;
    button.textContent = text;
    buttons.append(button);
  }
  form.append(buttons);
  showChanged();
}

function groupOf(title) {
  const group = document.createElement("fieldset");
  const legend = document.createElement("legend");
  legend.textContent = title;
  group.append(legend);
  return group;
}

function changedOptions() {
  const changed = {};
  for (const input of $("#option-form").elements) {
    if (!input.name) continue;
    const isFlag = input.type === "checkbox";
    if (isFlag ? input.checked !== input.defaultChecked : input.value !== input.defaultValue) {
      changed[input.name] = isFlag ? String(input.checked) : input.value;
    }
  }
  return changed;
}

function showChanged() {
  const changed = Object.entries(changedOptions());
  $("#changed").textContent = changed.map(([name, value]) => `${name} ${value}`).join(", ");
}

// --- Cards ---

function add(files) {
  const added = files.map((file) => {
    const element = $("#card").content.firstElementChild.cloneNode(true);
    const card = { file, element, url: URL.createObjectURL(file) };
    const img = $("img", element);
    img.onerror = () => { $("figure", element).hidden = true; };
    img.src = card.url;
    $(".name", element).textContent = file.name;
    $(".remove", element).onclick = () => remove(card);
    $(".copy", element).onclick = () => copy(card);
    connectWords(card);
    return card;
  });
  cards.unshift(...added);
  $("#cards").prepend(...added.map((card) => card.element));
  added.forEach(send);
  showStatus();
  sendNext();
}

function send(card) {
  card.abort?.abort();
  card.abort = new AbortController();
  card.options = changedOptions();
  card.result = card.error = null;
  card.element.className = "card waiting";
  $(".caption", card.element).textContent = "Waiting for the caption …";
  $(".note", card.element).textContent = "";
  $(".others", card.element).replaceChildren();
  $(".copy", card.element).hidden = true;
  hideAttention(card);
  if (!waiting.includes(card)) waiting.push(card);
}

function remove(card) {
  card.abort.abort();
  URL.revokeObjectURL(card.url);
  for (const list of [cards, waiting]) if (list.includes(card)) list.splice(list.indexOf(card), 1);
  const next = card.element.nextElementSibling ?? card.element.previousElementSibling;
  card.element.remove();
  (next ? $(".remove", next) : $("#files")).focus();
  showStatus();
}

function showError(card, message) {
  card.error = message;
  card.element.className = "card failed";
  $(".caption", card.element).textContent = message;
}

function showResult(card, result) {
  card.result = result;
  card.element.className = "card";
  const [best, ...others] = result.captions;
  const words = best.tokens.filter((token) => token.text);
  const line = $(".caption", card.element);
  line.replaceChildren();
  let rest = best.caption;
  words.forEach((token, index) => {
    const word = document.createElement("span");
    const probability = Math.exp(token.log_prob);
    word.className = "word";
    word.textContent = token.text.trim();
    word.tabIndex = index ? -1 : 0;
    word.dataset.percent = percent(probability).replace(" %", "");
    word.dataset.level = probability < 0.2 ? 0 : probability < 0.5 ? 1 : 2;
    word.setAttribute("aria-label", `${token.text.trim()}, probability ${percent(probability)}`);
    word.attention = token.attention;
    if (rest.startsWith(" ")) line.append(" ");
    rest = rest.trimStart().slice(word.textContent.length);
    line.append(word);
  });
  const mean = Math.exp(best.log_prob / best.tokens.length);
  const note = $(".note", card.element);
  note.textContent = `${percent(mean)} per word · log-probability ${decimal(best.log_prob)}`;
  note.title = "The geometric mean of the probabilities of all words and of the end of the caption.";
  for (const other of others) {
    const item = document.createElement("li");
    const score = document.createElement("span");
    score.textContent = decimal(other.log_prob);
    score.title = "log-probability";
    item.append(score, other.caption);
    $(".others", card.element).append(item);
  }
  $(".copy", card.element).hidden = !navigator.clipboard;
}

function percent(probability) {
  const value = 100 * probability;
  return `${value >= 99.5 || value < 0.05 ? value.toFixed(0) : value.toPrecision(2)} %`;
}

const decimal = (number) => number.toFixed(2).replace("-", "−");

async function copy(card) {
  await navigator.clipboard.writeText(card.result.caption);
  const button = $(".copy", card.element);
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

function showStatus() {
  const done = cards.filter((card) => card.result).length;
  const failed = cards.filter((card) => card.error).length;
  document.body.classList.toggle("has-cards", cards.length > 0);
  $("#toolbar").hidden = !cards.length;
  $("#save").disabled = !done;
  $("#status").textContent =
    `${done} of ${cards.length} captioned` + (failed ? `, ${failed} failed` : "");
}

function save() {
  const rows = [...cards].filter((card) => card.result || card.error).map((card) => ({
    file: card.file.name,
    ...(card.result
      ? {
          caption: card.result.caption,
          log_prob: card.result.log_prob,
          captions: card.result.captions.map(({ caption, log_prob }) => ({ caption, log_prob })),
        }
      : { error: card.error }),
    options: card.options,
  }));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(rows, null, 2)], { type: "application/json" }));
  link.download = "captions.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// --- Words and attention ---

function connectWords(card) {
  const line = $(".caption", card.element);
  const wordOf = (event) => event.target.closest(".word");
  line.addEventListener("pointerover", (event) => { if (wordOf(event)) showAttention(card, wordOf(event)); });
  line.addEventListener("pointerleave", () => hideAttention(card));
  line.addEventListener("focusin", (event) => showAttention(card, wordOf(event)));
  line.addEventListener("focusout", () => hideAttention(card));
  line.addEventListener("click", (event) => wordOf(event)?.focus());
  line.addEventListener("keydown", (event) => {
    const words = [...line.querySelectorAll(".word")];
    const index = words.indexOf(wordOf(event));
    const target = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: words.length - 1 }[event.key];
    if (event.key === "Escape") event.target.blur();
    if (words[target]) {
      words[index].tabIndex = -1;
      words[target].tabIndex = 0;
      words[target].focus();
      event.preventDefault();
    }
  });
}

function hideAttention(card) {
  $(".attention", card.element).hidden = true;
  for (const word of card.element.querySelectorAll(".word.shown")) word.classList.remove("shown");
}

// Darken the image where the decoder did not attend while it wrote a word.
function showAttention(card, word) {
  hideAttention(card);
  word.classList.add("shown");
  const img = $("img", card.element);
  if (!word.attention || !img.naturalWidth) return;
  const side = Math.round(Math.sqrt(word.attention.length));
  const most = Math.max(...word.attention, 1e-6);
  const grid = document.createElement("canvas");
  grid.width = grid.height = side;
  const pixels = new ImageData(side, side);
  word.attention.forEach((weight, cell) => { pixels.data[4 * cell + 3] = 205 * (1 - weight / most); });
  grid.getContext("2d").putImageData(pixels, 0, 0);

  // The part of the figure that the image fills, and the part of the image that the model saw.
  const { naturalWidth, naturalHeight, clientWidth, clientHeight } = img;
  const scale = Math.min(clientWidth / naturalWidth, clientHeight / naturalHeight);
  const [width, height] = [scale * naturalWidth, scale * naturalHeight];
  const square = model.crop && model.crop * Math.min(width, height);
  const [seenWidth, seenHeight] = square ? [square, square] : [width, height];
  const [left, top] = [(width - seenWidth) / 2, (height - seenHeight) / 2];
  const canvas = $(".attention", card.element);
  const density = window.devicePixelRatio || 1;
  canvas.width = width * density;
  canvas.height = height * density;
  Object.assign(canvas.style, {
    left: `${(clientWidth - width) / 2}px`, top: `${(clientHeight - height) / 2}px`,
    width: `${width}px`, height: `${height}px`,
  });
  const context = canvas.getContext("2d");
  context.scale(density, density);
  context.fillStyle = `rgb(0 0 0 / ${205 / 255})`;
  context.fillRect(0, 0, width, height);
  context.clearRect(left, top, seenWidth, seenHeight);
  context.imageSmoothingQuality = "high";
  context.drawImage(grid, left, top, seenWidth, seenHeight);
  canvas.hidden = false;
}

// --- Ways to bring images ---

// The files of a drop, with those of dropped folders.
async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const found = [];
  const visit = async (entry, isInside) => {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject)).catch(() => null);
      if (file && (!isInside || IMAGE_NAME.test(file.name))) found.push(file);
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)).catch(() => []);
      if (!some.length) return;
      for (const child of some) await visit(child, true);
    }
  };
  for (const entry of entries) await visit(entry, false);
  return found.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
}

function connectPage() {
  $("#files").addEventListener("change", (event) => {
    add([...event.target.files]);
    event.target.value = ""; // so that the same file can be chosen again
  });
  let depth = 0; // dragenter and dragleave come for every element below the pointer
  const mark = (change) => { depth = change ? depth + change : 0; $("#drop").classList.toggle("over", depth > 0); };
  document.addEventListener("dragenter", () => mark(1));
  document.addEventListener("dragleave", () => mark(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    mark(0);
    const files = model ? await filesOf(event.dataTransfer) : [];
    if (files.length) add(files);
  });
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (model && files.length) {
      event.preventDefault();
      add(files);
    }
  });
  $("#token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("token", $("#token").value.trim());
    start();
  });
  $("#option-form").addEventListener("input", showChanged);
  $("#option-form").addEventListener("reset", () => setTimeout(showChanged));
  const again = () => { cards.forEach(send); showStatus(); sendNext(); };
  $("#option-form").addEventListener("submit", (event) => { event.preventDefault(); again(); });
  $("#again").addEventListener("click", again);
  $("#clear").addEventListener("click", () => { [...cards].forEach(remove); });
  $("#save").addEventListener("click", save);
}

connectPage();
start();
