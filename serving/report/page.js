"use strict";
// The gallery of a report. Text from the data only ever becomes text nodes, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const images = data.images;
const $ = (id) => document.getElementById(id);
const CHUNK = 48; // cards added at once while scrolling

/** Make an element; properties that start with "--" are CSS variables, children may be text. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("--")) made.style.setProperty(name, value);
    else if (name.includes("-")) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const number = (value, digits = 2) => value.toFixed(digits).replace("-", "−");
const percent = (value) => number(100 * value, 1);

// ---- search -------------------------------------------------------------------------------

const NO_SPACES = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}]/u;

/** Lower-case words of a text, as one string with a space around each. */
function words(text) {
  const found = text.normalize("NFC").toLowerCase().match(/[\p{L}\p{M}\p{N}]+(?:['’.-][\p{L}\p{M}\p{N}]+)*/gu);
  return ` ${(found || []).join(" ")} `;
}

for (const image of images) {
  image.captionWords = words(image.caption);
  image.referenceWords = image.references.map(words).join("");
  image.fileWords = image.file.toLowerCase();
}

/** Parse `dog -snow "two men"` into [{text, wanted}, …]. */
function parseQuery(query) {
  const terms = [];
  for (const [, minus, quoted, plain] of query.matchAll(/(-?)(?:"([^"]*)"?|(\S+))/g)) {
    const typed = quoted ?? plain;
    const text = words(typed);
    if (text.trim()) terms.push({ text: NO_SPACES.test(typed) ? text.trim() : text, typed: typed.toLowerCase(), wanted: !minus });
  }
  return terms;
}

function contains(image, term, scope) {
  const inCaption = image.captionWords.includes(term.text);
  if (scope === "caption") return inCaption;
  if (scope === "file") return image.fileWords.includes(term.typed);
  const inReferences = image.referenceWords.includes(term.text);
  if (scope === "references") return inReferences;
  if (scope === "missed") return inReferences && !inCaption;
  if (scope === "wrong") return inCaption && !inReferences;
  return inCaption || inReferences;
}

/** A text in which the words of the query are marked. */
function marked(text) {
  const wanted = terms.filter((term) => term.wanted).map((term) => term.text.trim());
  const span = element("span");
  if (!wanted.length || state.scope === "file") return element("span", {}, text);
  const escaped = wanted.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replace(/ /g, "[^\\p{L}\\p{N}]+"));
  const edge = NO_SPACES.test(wanted.join("")) ? "" : "[\\p{L}\\p{M}\\p{N}]";
  const pattern = new RegExp(edge ? `(?<!${edge})(${escaped.join("|")})(?!${edge})` : `(${escaped.join("|")})`, "giu");
  text.split(pattern).forEach((part, i) => span.append(i % 2 ? element("mark", {}, part) : part));
  return span;
}

// ---- sort and filter ----------------------------------------------------------------------

/** The rank of each image by a value, 0 to 1; images without the value come first. */
function ranks(value) {
  const order = [...images.keys()].sort((a, b) => (value(images[a]) ?? -Infinity) - (value(images[b]) ?? -Infinity));
  const rank = new Array(images.length);
  order.forEach((index, place) => { rank[index] = place / Math.max(1, images.length - 1); });
  return rank;
}

const ciderRank = ranks((image) => image.cider);
const confidenceRank = ranks((image) => image.confidence);
images.forEach((image, index) => { image.index = index; image.level = ciderRank[index]; });

const captionCounts = new Map();
for (const image of images) captionCounts.set(image.caption, (captionCounts.get(image.caption) || 0) + 1);

// Each returns a number; images are sorted by it, smallest first.
const sortKeys = {
  order: (image) => image.index,
  best: (image) => -image.cider,
  worst: (image) => image.cider,
  surprising: (image) => image.confidence ?? Infinity,
  confident: (image) => -(image.confidence ?? -Infinity),
  overconfident: (image) => ciderRank[image.index] - confidenceRank[image.index],
  longest: (image) => -image.numWords,
  shortest: (image) => image.numWords,
};
data.others.forEach((_, k) => {
  const gain = (image) => (image.others[k] ? image.cider - image.others[k].cider : -Infinity);
  sortKeys[`gain-${k}`] = (image) => -gain(image);
  sortKeys[`loss-${k}`] = (image) => (image.others[k] ? gain(image) : Infinity);
});

const filters = {
  all: () => true,
  low: (image) => image.level <= 0.25,
  high: (image) => image.level >= 0.75,
  repeated: (image) => captionCounts.get(image.caption) > 1,
  unique: (image) => captionCounts.get(image.caption) === 1,
  copied: (image) => image.copied,
  new: (image) => !image.copied,
};

const DEFAULTS = { query: "", scope: "any", sort: "order", filter: "all" };
const state = { ...DEFAULTS };
let terms = [];
let shown = images; // those that match, in order

function update() {
  for (const name of Object.keys(DEFAULTS)) {
    const value = $(name).value;
    state[name] = value || DEFAULTS[name];
  }
  terms = parseQuery(state.query);
  const key = sortKeys[state.sort], passes = filters[state.filter];
  shown = images
    .filter((image) => passes(image) && terms.every((term) => contains(image, term, state.scope) === term.wanted))
    .map((image) => [key(image), image])
    .sort(([a, x], [b, y]) => (a < b ? -1 : a > b ? 1 : x.index - y.index))
    .map(([, image]) => image);
  $("count").textContent = shown.length === images.length
    ? `${images.length.toLocaleString("en")} images`
    : `${shown.length.toLocaleString("en")} of ${images.length.toLocaleString("en")}`;
  $("none").hidden = shown.length > 0;
  $("clear").hidden = Object.keys(DEFAULTS).every((name) => state[name] === DEFAULTS[name]);
  $("cards").replaceChildren();
  addCards();
  remember();
}

// ---- cards --------------------------------------------------------------------------------

function picture(image, properties = {}) {
  return image.picture
    ? element("img", { src: image.picture, alt: "", decoding: "async", ...properties })
    : element("span", { className: "none" }, image.file);
}

function makeCard(image) {
  const confidence = image.confidence === null ? null
    : element("span", { title: "log-probability per token, in nats" }, `${number(image.confidence)} /token`);
  return element("button", { type: "button", className: "card", onclick: () => open(shown.indexOf(image)) },
    element("span", { className: "picture" }, picture(image, { loading: "lazy" })),
    element("span", { className: "text" }, image.caption ? marked(image.caption) : element("i", {}, "empty caption")),
    element("span", { className: "meta" },
      element("span", { className: "score", "--level": image.level, title: "CIDEr of this image × 100" }, `CIDEr ${percent(image.cider)}`),
      confidence));
}

function addCards() {
  const cards = $("cards");
  cards.append(...shown.slice(cards.childElementCount, cards.childElementCount + CHUNK).map(makeCard));
}

/** Add cards until there is one at a place, and return it. */
function cardAt(place) {
  while ($("cards").childElementCount <= place && $("cards").childElementCount < shown.length) addCards();
  return $("cards").children[place];
}

new IntersectionObserver((entries) => {
  if (entries.some((entry) => entry.isIntersecting)) addCards();
}, { rootMargin: "1200px" }).observe($("more"));

// ---- detail -------------------------------------------------------------------------------

const LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const LEVEL_OF = new Map([...LEVELS].map((letter, level) => [letter, level / (LEVELS.length - 1)]));
const DARK = [8, 10, 20, 0.72], WARM = [255, 170, 60, 0.12];

let current = -1; // place in `shown` of the open image
let pinned = -1; // token whose attention stays visible
let tokenButtons = [];

/** Draw the attention of a token over the image: dark where it is small, warm where it is large. */
function paint(canvas, attention) {
  const [rows, columns] = data.grid;
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d"), pixels = context.createImageData(columns, rows);
  for (let cell = 0; cell < rows * columns; cell++) {
    const weight = LEVEL_OF.get(attention[cell]);
    const mixed = DARK.map((dark, channel) => dark + (WARM[channel] - dark) * weight);
    pixels.data.set([mixed[0], mixed[1], mixed[2], 255 * mixed[3]], 4 * cell);
  }
  context.putImageData(pixels, 0, 0);
}

function showToken(k) {
  const image = shown[current], token = image?.tokens[k], box = $("detail-body").querySelector(".shown");
  tokenButtons.forEach((button, i) => button.setAttribute("aria-pressed", i === k));
  const lit = Boolean(token && token.attention && data.grid);
  box.classList.toggle("lit", lit);
  box.querySelector(".word-shown").textContent = lit ? describe(token) : "";
  if (lit) paint(box.querySelector("canvas"), token.attention);
}

function describe(token) {
  const word = token.text.trim() || "end of the caption";
  return token.attended < 0.995 ? `${word} · ${Math.round(100 * token.attended)} % of the attention on the image` : word;
}

function pin(k) {
  pinned = pinned === k ? -1 : k;
  showToken(pinned);
}

function makeTokens(image) {
  tokenButtons = image.tokens.map((token, k) => {
    const p = Math.exp(token.logProb), isEnd = k === image.tokens.length - 1;
    const joined = k > 0 && !isEnd && !token.text.startsWith(" ");
    return element("button", {
      type: "button",
      className: ["token", isEnd && "end", joined && "joined", p < 0.1 && "unlikely"].filter(Boolean).join(" "),
      "--p": p, "aria-pressed": "false",
      title: `probability ${percent(p)} %, log-probability ${number(token.logProb)}`,
      onclick: () => pin(k), onfocus: () => showToken(k), onblur: () => showToken(pinned),
      onpointerenter: (event) => event.pointerType === "mouse" && showToken(k),
      onpointerleave: (event) => event.pointerType === "mouse" && showToken(pinned),
    }, isEnd ? "end" : token.text.trim(), element("small", {}, `${Math.round(100 * p)}%`));
  });
  return element("div", { className: "tokens" }, ...tokenButtons);
}

function makeTable(header, rows) {
  const cells = (tag, values) => element("tr", {}, ...values.map((value) => element(tag, {}, value)));
  return element("div", { className: "scroll" }, element("table", {},
    element("thead", {}, cells("th", header)), element("tbody", {}, ...rows.map((row) => cells("td", row)))));
}

function makePicture(image) {
  const [left, top, right, bottom] = image.box.map((edge) => 100 * edge);
  const region = element("div", { className: "region" }, element("canvas"));
  Object.assign(region.style, { left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%` });
  const box = element("div", { className: "shown" }, picture(image), region, element("span", { className: "word-shown" }));
  box.style.aspectRatio = `${image.width} / ${image.height}`;
  const hint = data.grid && image.tokens.length ? " Point at or tap a word to see where the model looked." : "";
  return element("div", {}, box, element("p", { className: "soft under" }, `${image.file} · image ${image.id}.${hint}`));
}

function makeDetail(image) {
  const numbers = element("div", { className: "numbers" },
    element("span", { className: "score", "--level": image.level }, `CIDEr ${percent(image.cider)}`));
  if (image.logProb !== null) {
    numbers.append(element("span", {}, `log-probability ${number(image.logProb)}`),
      element("span", {}, `${number(image.confidence)} per token`));
  }
  if (captionCounts.get(image.caption) > 1) numbers.append(element("span", { className: "soft" }, `caption of ${captionCounts.get(image.caption)} images`));
  if (image.copied) numbers.append(element("span", { className: "soft" }, "caption of the train split"));
  const parts = [
    element("p", { id: "detail-caption", className: image.tokens.length ? "hidden" : "detail-caption" }, image.caption || "empty caption"),
    image.tokens.length ? makeTokens(image) : null,
    numbers,
    element("h3", {}, `References (${image.references.length})`),
    element("ul", {}, ...image.references.map((text) => element("li", {}, marked(text)))),
  ];
  if (data.others.some((_, k) => image.others[k])) {
    const rows = data.others.map((name, k) => [name, image.others[k]]).filter(([, other]) => other);
    parts.push(element("h3", {}, "Other evaluations"),
      makeTable(["caption", "CIDEr"], rows.map(([name, other]) => [
        element("span", {}, other.caption, element("br"), element("small", {}, name)), percent(other.cider)])));
  }
  if (image.ranked.length) {
    parts.push(element("h3", {}, "Candidates"), makeTable(["caption", "log-prob.", "score"],
      image.ranked.map((ranked) => [ranked.text, number(ranked.logProb), number(ranked.score)])));
  }
  return [makePicture(image), element("div", {}, ...parts)];
}

function open(place) {
  if (place < 0 || place >= shown.length) return;
  current = place;
  pinned = -1;
  $("detail-body").replaceChildren(...makeDetail(shown[place]));
  $("position").textContent = `${(place + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")}`;
  $("previous").disabled = place === 0;
  $("next").disabled = place === shown.length - 1;
  if (!$("detail").open) $("detail").showModal();
  $("detail").scrollTop = 0;
  remember();
}

$("detail").addEventListener("close", () => {
  const card = cardAt(current);
  current = -1;
  remember();
  card?.focus();
});
$("detail").addEventListener("click", (event) => { if (event.target === $("detail")) $("detail").close(); });
$("previous").onclick = () => open(current - 1);
$("next").onclick = () => open(current + 1);
$("close").onclick = () => $("detail").close();

let touchStart = null; // swiping left or right moves to the next or the previous image
$("detail-body").addEventListener("touchstart", ({ touches }) => {
  touchStart = touches.length === 1 ? touches[0] : null;
}, { passive: true });
$("detail-body").addEventListener("touchend", ({ changedTouches: [end] }) => {
  if (!touchStart) return;
  const across = end.clientX - touchStart.clientX, down = end.clientY - touchStart.clientY;
  if (Math.abs(across) > 60 && Math.abs(across) > 2 * Math.abs(down)) open(current + (across < 0 ? 1 : -1));
}, { passive: true });

// ---- keyboard -----------------------------------------------------------------------------

function moveInDetail(key) {
  if (key === "ArrowLeft") open(current - 1);
  else if (key === "ArrowRight") open(current + 1);
  else if (tokenButtons.length && (key === "ArrowDown" || key === "ArrowUp")) {
    const step = key === "ArrowDown" ? 1 : -1, from = tokenButtons.indexOf(document.activeElement);
    const next = from < 0 ? (step > 0 ? 0 : tokenButtons.length - 1) : (from + step + tokenButtons.length) % tokenButtons.length;
    tokenButtons[next].focus();
  } else return false;
  return true;
}

function moveInCards(key) {
  const cards = $("cards"), card = document.activeElement;
  if (card.parentElement !== cards) return false;
  const columns = getComputedStyle(cards).gridTemplateColumns.split(" ").length;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  const place = [...cards.children].indexOf(card);
  const next = key === "Home" ? 0 : key === "End" ? shown.length - 1 : place + steps[key];
  if (Number.isNaN(next) || next < 0 || next >= shown.length) return key in steps;
  cardAt(next).focus();
  return true;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const isTyping = event.target.matches("input, select, textarea");
  if ($("detail").open) {
    if (moveInDetail(event.key)) event.preventDefault();
  } else if (event.key === "/" && !isTyping) {
    event.preventDefault();
    $("query").focus();
    $("query").select();
  } else if (event.key === "Escape" && event.target === $("query")) {
    event.preventDefault();
    if ($("query").value) { $("query").value = ""; update(); } else $("query").blur();
  } else if (event.target === $("query") && (event.key === "ArrowDown" || event.key === "Enter")) {
    event.preventDefault();
    cardAt(0)?.focus();
  } else if (!isTyping && moveInCards(event.key)) event.preventDefault();
});

// ---- start --------------------------------------------------------------------------------

/** Keep the view in the address, so that it survives a reload and can be shared. */
function remember() {
  const values = Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name]);
  if (current >= 0) values.push(["image", shown[current].id]);
  const hash = String(new URLSearchParams(values));
  try { history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search); } catch { /* sandboxed */ }
}

function restore() {
  const values = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  for (const name of Object.keys(DEFAULTS)) {
    const field = $(name), value = values.get(name);
    if (value !== null) field.value = value;
    if (field.selectedIndex === -1) field.value = DEFAULTS[name];
  }
  const wanted = values.get("image"), section = location.hash;
  update();
  if (wanted !== null) open(shown.findIndex((image) => String(image.id) === wanted));
  else if (section && !section.includes("=")) document.querySelector(`[id="${CSS.escape(section.slice(1))}"]`)?.scrollIntoView();
}

for (const name of ["scope", "sort", "filter"]) $(name).addEventListener("change", update);
let waiting;
$("query").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(update, 120); });
document.querySelector(".tools").addEventListener("submit", (event) => event.preventDefault());
document.querySelector(".tools").addEventListener("reset", () => setTimeout(update));
for (const button of document.querySelectorAll("[data-word]")) {
  button.onclick = () => {
    $("query").value = `"${button.dataset.word}"`;
    $("scope").value = button.dataset.scope;
    $("filter").value = "all";
    update();
    $("gallery").scrollIntoView();
  };
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try { localStorage.setItem("showtell-theme", theme); } catch { /* no storage for files */ }
}
try { if (localStorage.getItem("showtell-theme")) setTheme(localStorage.getItem("showtell-theme")); } catch { /* none */ }
$("theme").onclick = () => {
  const isDark = document.documentElement.dataset.theme === "dark"
    || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  setTheme(isDark ? "light" : "dark");
};

restore();
