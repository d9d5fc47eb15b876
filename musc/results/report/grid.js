// The grid and its controls. Cards are made as far as one has scrolled, so that thousands of images cost nothing.
const grid = byId("grid"), CHUNK = 60;
const made = new Map(); // cards by image, kept for the next filter
const cards = new Map(); // those in the grid, in its order

function setSrc(img, address) { img.loading = "lazy"; img.decoding = "async"; img.draggable = false; img.src = address; return img; }
const photo = (i, kind = 0) => setSrc(make("img", { alt: "", className: "photo" }), DATA.files[kind][i]);
const map = (i, look) => setSrc(make("img", { alt: "", className: `map ${look}` }), DATA.files[2][i]);

// The map is stretched over the photograph: both fill a box of the photograph's shape.
function pane(i, layers) {
  const [w, h] = DATA.sizes[i], box = make("div", { className: "fitted" }, ...layers);
  box.style.cssText = w >= h ? `width:100%;height:${100 * h / w}%` : `height:100%;width:${100 * w / h}%`;
  return make("div", { className: "pane" }, box);
}

function panes(i) {
  const overlay = () => pane(i, [photo(i), map(i, "heat")]);
  return { image: () => [pane(i, [photo(i)])], overlay: () => [overlay()], mask: () => [pane(i, [map(i, "cut")])],
    side: () => [pane(i, [photo(i)]), overlay()] }[state.view]();
}

const labelled = i => !DATA.labels ? DATA.defects[i] : `label: ${DATA.labels[i] ? DATA.defects[i] || "anomalous" : "normal"}`;

function card(i) {
  const button = make("button", { type: "button", className: "card", tabIndex: -1 },
    make("span", { className: "panes" }), make("span", { className: "said" }, make("span", { className: "mark" }),
      make("b", { textContent: digits(DATA.raw[i]) }), " ", make("span", { className: "verdict" }),
      make("span", { className: "label", textContent: labelled(i) }), make("span", { className: "name", textContent: DATA.paths[i], title: DATA.paths[i] })));
  const item = make("li", {}, button);
  item.dataset.i = i;
  dress(i, item);
  return item;
}

function dress(i, item) { // decision and mark, as they are now
  const said = DATA.threshold === null && state.threshold > HIGHEST ? "" : anomalous(i) ? "▲ anomalous" : "normal";
  const m = mark(i);
  item.className = anomalous(i) ? "anomalous" : "";
  item.querySelector(".verdict").textContent = said;
  const badge = item.querySelector(".mark");
  badge.textContent = m === undefined ? "" : m ? "✗ bad" : "✓ good";
  badge.className = `mark ${m === undefined ? "" : m ? "bad" : "good"}`;
  const shown = item.querySelector(".panes");
  if (shown.dataset.view !== state.view) {
    shown.replaceChildren(...panes(i));
    shown.dataset.view = state.view;
  }
}

function redress() { for (const [i, item] of cards) dress(i, item); }

function choose() { // what is shown, in which order
  const which = byId("which").value, defect = byId("defect")?.value ?? "", text = byId("text").value.trim().toLowerCase();
  const order = byId("order").value, t = state.threshold, reach = near();
  const wanted = { all: () => true, anomalous, normal: i => !anomalous(i), near: i => Math.abs(DATA.raw[i] - t) <= reach,
    wrong: i => known(i) !== undefined && Boolean(known(i)) !== anomalous(i),
    marked: i => mark(i) !== undefined, unmarked: i => mark(i) === undefined }[which];
  const found = [];
  for (let i = 0; i < N; i++) {
    if (wanted(i) && (!defect || DATA.defects[i] === defect)
      && (!text || DATA.paths[i].toLowerCase().includes(text) || DATA.defects[i].toLowerCase().includes(text))) found.push(i);
  }
  const by = { raw: null, score: (a, b) => DATA.score[b] - DATA.score[a], near: (a, b) => Math.abs(DATA.raw[a] - t) - Math.abs(DATA.raw[b] - t),
    name: (a, b) => DATA.paths[a] < DATA.paths[b] ? -1 : 1, random: (a, b) => SHUFFLED[a] - SHUFFLED[b] }[order];
  return by ? found.sort(by) : found;
}

// A tenth of the images on either side count as near.
function near() {
  const away = DATA.raw.map(r => Math.abs(r - state.threshold)).sort((a, b) => a - b);
  return away[Math.min(N - 1, Math.max(4, Math.ceil(N / 5) - 1))];
}

const SHUFFLED = (() => { // the same order at every visit, so that marks of the first images are a fair sample
  let seed = 1;
  return DATA.paths.map(() => (seed = seed * 48271 % 2147483647));
})();

function show() {
  state.shown = choose();
  cards.clear();
  grid.replaceChildren();
  grid.classList.toggle("side", state.view === "side");
  more();
  if (!cards.has(state.current)) state.current = state.shown[0] ?? -1;
  setCurrent(state.current, false);
  say(state.shown.length ? `${state.shown.length} of ${N} images` : "No image is left: loosen the filters.");
}

function more(upTo = cards.size + CHUNK) {
  const added = state.shown.slice(cards.size, upTo).map(i => {
    const item = made.get(i) ?? card(i);
    if (made.has(i)) dress(i, item);
    made.set(i, item);
    cards.set(i, item);
    return item;
  });
  grid.append(...added);
}

new IntersectionObserver(seen => { if (seen[0].isIntersecting && cards.size < state.shown.length) more(); },
  { rootMargin: "1500px" }).observe(byId("more"));

function setCurrent(i, focus = true) {
  const place = state.shown.indexOf(i);
  if (place < 0) return;
  if (place >= cards.size) more(place + 1);
  made.get(state.current)?.firstChild.setAttribute("tabindex", "-1");
  state.current = i;
  const button = cards.get(i).firstChild;
  button.tabIndex = 0;
  if (focus) { button.focus({ preventScroll: true }); cards.get(i).scrollIntoView({ block: "nearest" }); }
}

function columns() { return getComputedStyle(grid).gridTemplateColumns.split(" ").length; }

function setMark(i, value) {
  if (value === undefined) state.marks.delete(DATA.paths[i]); else state.marks.set(DATA.paths[i], value);
  keepMarks();
  if (cards.has(i)) dress(i, cards.get(i));
  say(`${DATA.paths[i]}: ${value === undefined ? "no mark" : value ? "bad" : "good"}`);
  afterMarks();
}

function afterMarks() {
  const values = DATA.paths.map((_, i) => mark(i)).filter(m => m !== undefined), bad = values.filter(Boolean).length;
  byId("marked").textContent = values.length ? `${values.length - bad} good, ${bad} bad.` : "Nothing is marked.";
  byId("download").disabled = byId("clear").disabled = !values.length;
  histogram();
  judge();
}

grid.addEventListener("click", event => {
  const item = event.target.closest("li");
  if (item) { setCurrent(Number(item.dataset.i)); openViewer(state.current); }
});

function keyed(event) { // the same keys on an image of the grid and in the viewer
  if (event.ctrlKey || event.metaKey || event.altKey) return true;
  const key = event.key.toLowerCase(), views = ["image", "overlay", "mask", "side"];
  if (key === "g") setMark(state.current, 0);
  else if (key === "b") setMark(state.current, 1);
  else if (key === "u") setMark(state.current, undefined);
  else if ("1234".includes(key)) setView(views[key - 1]);
  else return true;
  return false;
}

grid.addEventListener("keydown", event => {
  const place = state.shown.indexOf(state.current), step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns(),
    Home: -place, End: state.shown.length - 1 - place }[event.key];
  if (step !== undefined && !event.ctrlKey && !event.metaKey && !event.altKey) {
    const to = place + step;
    if (to >= 0 && to < state.shown.length) setCurrent(state.shown[to]);
    event.preventDefault();
  } else if (!keyed(event)) event.preventDefault();
});

// Threshold, histogram, and what the labels say of it.
function histogram() {
  const BINS = 50, from = LOWEST - MARGIN, width = (HIGHEST - LOWEST + 2 * MARGIN) / BINS;
  const bars = Array.from({ length: BINS }, () => [0, 0, 0]);
  for (let i = 0; i < N; i++) bars[Math.min(BINS - 1, Math.floor((DATA.raw[i] - from) / width))][known(i) ?? 2]++;
  const top = Math.max(...bars.map(b => b[0] + b[1] + b[2])), kinds = ["normal", "anomalous", "unknown"], parts = [];
  bars.forEach((bar, n) => {
    let y = 80;
    [0, 2, 1].forEach(k => {
      const h = 76 * bar[k] / top;
      if (h) parts.push(`<rect class="${kinds[k]}" x="${300 * n / BINS}" y="${y - h}" width="${300 / BINS - 0.6}" height="${h}"/>`);
      y -= h;
    });
  });
  byId("histogram").innerHTML = `${parts.join("")}<line y1="0" y2="84"/>`; // numbers alone
  const sums = [0, 1, 2].map(k => bars.reduce((s, b) => s + b[k], 0));
  const names = [DATA.labels ? "normal" : "marked good", DATA.labels ? "anomalous" : "marked bad", DATA.labels ? "unknown" : "not marked"];
  byId("key").replaceChildren(...names.map((name, k) => make("li", { className: kinds[k], textContent: name })).filter((_, k) => sums[k]));
  byId("histogram").setAttribute("aria-label", `Histogram of raw scores, ${digits(LOWEST)} to ${digits(HIGHEST)}`);
  placeLine();
}

function placeLine() {
  const x = 300 * (state.threshold - LOWEST + MARGIN) / (HIGHEST - LOWEST + 2 * MARGIN), line = byId("histogram").querySelector("line");
  line?.setAttribute("x1", x); line?.setAttribute("x2", x);
}

function judge() { // the confusion matrix and what follows from it
  const c = counts(state.threshold), sure = c.tp + c.fp + c.fn + c.tn;
  byId("truth").hidden = !sure;
  byId("h-truth").textContent = DATA.labels ? "Against the labels" : "Against your marks";
  document.querySelector("#which [value=wrong]").hidden = !sure;
  byId("best").hidden = bestThreshold() === null;
  for (const name of ["tp", "fp", "fn", "tn"]) byId(name).textContent = c[name];
  const rows = [["F1", percent(c.tp + c.fn ? f1(c) : NaN)], ["found (recall)", percent(c.tp / (c.tp + c.fn))], ["false alarms", percent(c.fp / (c.fp + c.tn))]];
  if (DATA.overlap.length) {
    const l = level(), at = table => l > 255 ? 0 : table[Math.max(l, 0)];
    rows.push(["PRO: overlap of true regions", percent(at(DATA.overlap))], ["normal pixels above", percent(at(DATA.alarms))]);
  }
  byId("rates").replaceChildren(...rows.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })]));
}

function setThreshold(value, { exact = false } = {}) {
  if (!Number.isFinite(value)) return;
  state.threshold = value;
  byId("slider").value = value;
  byId("slider").setAttribute("aria-valuetext", digits(value));
  if (document.activeElement !== byId("value")) byId("value").value = exact ? value : digits(value);
  const number = DATA.raw.filter(r => r >= value).length;
  byId("counts").textContent = `${number} of ${N} anomalous (${percent(number / N)})`;
  for (const cut of document.querySelectorAll("filter .cut")) { // 1 from the threshold's step of grey on, 0 below
    cut.setAttribute("slope", 255);
    cut.setAttribute("intercept", 1 - level());
  }
  placeLine();
  judge();
  if (byId("which").value === "all" && byId("order").value !== "near") redress(); else show();
  refreshViewer();
}

function setView(view) {
  state.view = view;
  for (const button of document.querySelectorAll("[data-view]:is(button)")) button.setAttribute("aria-pressed", button.dataset.view === view);
  grid.classList.toggle("side", view === "side");
  redress();
  refreshViewer();
}

function setOpacity(value) {
  state.opacity = Number(value);
  byId("opacity").value = byId("v-opacity").value = value;
  document.querySelector("#f-heat feFuncA").setAttribute("amplitude", value);
}

function start() {
  const tables = document.querySelectorAll("#f-heat feComponentTransfer:first-child > *");
  DATA.colours.forEach((table, c) => tables[c].setAttribute("tableValues", table.join(" ")));
  const stops = DATA.colours[0].map((_, n) => `rgb(${DATA.colours.map(c => Math.round(255 * c[n]))})`);
  byId("bar").style.background = `linear-gradient(90deg, ${stops})`;
  [byId("low").textContent, byId("high").textContent] = DATA.scale.map(digits);
  Object.assign(byId("slider"), { min: LOWEST - MARGIN, max: HIGHEST + MARGIN });
  byId("saved").disabled = DATA.threshold === null;
  if (innerWidth <= 800) byId("controls").open = false;

  let waiting = 0; // one redraw per frame, however fast the slider moves
  byId("slider").addEventListener("input", () => { waiting ||= requestAnimationFrame(() => { waiting = 0; setThreshold(Number(byId("slider").value)); }); });
  byId("value").addEventListener("change", () => setThreshold(Number(byId("value").value)));
  byId("saved").addEventListener("click", () => setThreshold(DATA.threshold));
  byId("best").addEventListener("click", () => setThreshold(bestThreshold()));
  for (const id of ["opacity", "v-opacity"]) byId(id).addEventListener("input", event => setOpacity(event.target.value));
  for (const button of document.querySelectorAll("button[data-view]")) button.addEventListener("click", () => setView(button.dataset.view));
  for (const id of ["which", "defect", "order"]) byId(id)?.addEventListener("change", show);
  byId("text").addEventListener("input", show);
  byId("download").addEventListener("click", () => {
    const address = URL.createObjectURL(new Blob([marksAsCsv()], { type: "text/csv" }));
    make("a", { href: address, download: "marked.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  });
  byId("load").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", async event => {
    const [file] = event.target.files;
    if (file) { const number = marksFromCsv(await file.text()); keepMarks(); afterMarks(); show(); say(`${number} marks read.`); }
    event.target.value = "";
  });
  byId("clear").addEventListener("click", () => { state.marks.clear(); keepMarks(); afterMarks(); show(); });

  setOpacity(state.opacity);
  setThreshold(state.threshold);
  setView(state.view);
  show();
  afterMarks();
}
