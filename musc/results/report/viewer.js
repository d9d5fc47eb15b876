// One image, large: fit or enlarged, moved by dragging, through the shown ones by arrow keys.
const viewer = byId("viewer"), stage = byId("stage");
let zoom = null; // screen pixels per pixel of the image; null: fitted

function openViewer(i) {
  if (i < 0) return;
  state.current = i;
  if (!viewer.open) { zoom = null; viewer.showModal(); stage.focus(); }
  refreshViewer();
}

function viewerPanes(i) {
  const large = () => photo(i, 1), overlay = ["overlay", [large(), map(i, "heat")]];
  const found = { image: [["image", [large()]]], overlay: [overlay], mask: [["mask", [map(i, "cut")]]],
    side: [["image", [large()]], overlay, ["mask", [map(i, "cut")]]] }[state.view];
  if (state.view === "side" && DATA.files[3][i]) found.push(["true mask", [photo(i, 3)]]);
  return found;
}

function refreshViewer() {
  if (!viewer.open) return;
  const i = state.current, shown = `${i} ${state.view}`, m = mark(i);
  if (stage.dataset.shown !== shown) {
    const only = state.view === "side";
    stage.replaceChildren(...viewerPanes(i).map(([name, layers]) => {
      for (const layer of layers) layer.loading = "eager";
      return make("figure", {}, make("div", {}, ...layers), ...(only ? [make("figcaption", { textContent: name })] : []));
    }));
    stage.dataset.shown = shown;
  }
  byId("v-name").textContent = DATA.paths[i];
  const place = state.shown.indexOf(i), label = DATA.labels ? `; labelled ${DATA.labels[i] ? DATA.defects[i] || "anomalous" : "normal"}` : "";
  byId("v-said").textContent = `${place + 1} of ${state.shown.length}. Raw score ${digits(DATA.raw[i])}, which is ${anomalous(i) ? "anomalous" : "normal"}`
    + ` at ${digits(state.threshold)}; score ${digits(DATA.score[i])}${label}${m === undefined ? "" : `; marked ${m ? "bad" : "good"}`}.`
    + ` ${DATA.sizes[i].join(" × ")} pixels.`;
  byId("v-good").setAttribute("aria-pressed", m === 0);
  byId("v-bad").setAttribute("aria-pressed", m === 1);
  byId("v-before").disabled = place <= 0;
  byId("v-next").disabled = place < 0 || place >= state.shown.length - 1;
  listRegions(DATA.regions?.[i] ?? []);
  scale();
}

function listRegions(regions) {
  byId("v-regions").hidden = !regions.length;
  byId("v-regions").querySelector("summary").textContent = `${regions.length} region${regions.length === 1 ? "" : "s"} at the saved threshold`;
  const head = ["x", "y", "width", "height", "area", "highest score"].map(textContent => make("th", { scope: "col", textContent }));
  byId("v-regions").querySelector("table").replaceChildren(make("tr", {}, ...head),
    ...regions.slice(0, 50).map(row => make("tr", {}, ...row.map(v => make("td", { textContent: digits(v) })))));
}

function scale() {
  const [w, h] = DATA.sizes[state.current], figures = stage.querySelectorAll("figure");
  const room = [(stage.clientWidth - 24) / figures.length - 10, stage.clientHeight - 24 - (state.view === "side" ? 22 : 0)];
  const z = zoom ?? Math.min(room[0] / w, room[1] / h);
  for (const figure of figures) figure.firstChild.style.cssText = `width:${w * z}px;height:${h * z}px`;
  stage.classList.toggle("sharp", z >= 2);
  stage.dataset.zoom = z;
}

function setZoom(value) { // about the middle of what is seen
  const x = (stage.scrollLeft + stage.clientWidth / 2) / stage.scrollWidth, y = (stage.scrollTop + stage.clientHeight / 2) / stage.scrollHeight;
  zoom = value === null ? null : Math.min(16, Math.max(0.02, value));
  scale();
  stage.scrollTo({ left: x * stage.scrollWidth - stage.clientWidth / 2, top: y * stage.scrollHeight - stage.clientHeight / 2, behavior: "instant" });
}

function stepViewer(by) {
  const to = state.shown[state.shown.indexOf(state.current) + by];
  if (to === undefined) return;
  setCurrent(to, false);
  refreshViewer();
}

byId("v-before").addEventListener("click", () => stepViewer(-1));
byId("v-next").addEventListener("click", () => stepViewer(1));
byId("v-close").addEventListener("click", () => viewer.close());
byId("v-fit").addEventListener("click", () => setZoom(null));
byId("v-full").addEventListener("click", () => setZoom(1));
byId("v-in").addEventListener("click", () => setZoom(Number(stage.dataset.zoom) * 1.5));
byId("v-out").addEventListener("click", () => setZoom(Number(stage.dataset.zoom) / 1.5));
for (const [id, value] of [["v-good", 0], ["v-bad", 1]]) {
  byId(id).addEventListener("click", () => { setMark(state.current, mark(state.current) === value ? undefined : value); refreshViewer(); });
}
viewer.addEventListener("close", () => setCurrent(state.current));
viewer.addEventListener("keydown", event => {
  if (event.target.matches("input")) return;
  const act = { ArrowLeft: () => stepViewer(-1), ArrowRight: () => stepViewer(1), "+": () => byId("v-in").click(), "=": () => byId("v-in").click(),
    "-": () => byId("v-out").click(), 0: () => setZoom(null) }[event.key];
  const zoomed = zoom !== null && event.target === stage && event.key.startsWith("Arrow"); // then arrows scroll
  if (event.ctrlKey || event.metaKey || event.altKey || zoomed) return;
  if (act) act(); else if (keyed(event)) return;
  refreshViewer();
  event.preventDefault();
});
stage.addEventListener("wheel", event => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  setZoom(Number(stage.dataset.zoom) * (event.deltaY < 0 ? 1.2 : 1 / 1.2));
}, { passive: false });
stage.addEventListener("dblclick", () => setZoom(zoom === null ? 1 : null));
stage.addEventListener("pointerdown", event => {
  if (event.pointerType !== "mouse") return;
  const from = [event.clientX + stage.scrollLeft, event.clientY + stage.scrollTop];
  const move = e => stage.scrollTo({ left: from[0] - e.clientX, top: from[1] - e.clientY, behavior: "instant" });
  stage.classList.add("held");
  stage.addEventListener("pointermove", move);
  addEventListener("pointerup", () => { stage.classList.remove("held"); stage.removeEventListener("pointermove", move); }, { once: true });
});
addEventListener("resize", () => { if (viewer.open) scale(); });
start();
