/* MuSc in the browser, from the distances of Eq. 1 that data.js holds: what a reader chooses, Eq. 2-5 answer. */
(() => {
  "use strict";
  const data = window.MUSC_DATA;
  const root = document.getElementById("play");
  if (!data || !root) return;

  const [H, W] = data.grid;
  const M = H * W;
  const N = data.labels.length;
  const J = N - 1; // every image is scored by the others
  const D = data.degrees.length;
  const S = data.stages;
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const distances = bytes(data.distances); // [S, D, N, J, M], 0..255
  const nearest = new Uint16Array(bytes(data.nearest).buffer); // [D, N, J, M]
  const masks = bytes(data.masks); // [N, M]
  const unit = data.top / 255;

  const state = { image: N - 1, patch: 0, degrees: new Set(data.degrees), percent: 30, windows: new Set([2, 3]), mask: false };
  const other = (i, j) => (j < i ? j : j + 1);

  /* Eq. 2: the mean of the lowest X % of what the other images say; at least one of them. */
  const count = () => Math.max(1, Math.floor((state.percent / 100) * J + 1e-9 * J));

  const column = new Uint8Array(J);
  function intervalAverage(s, d, i, m) {
    const base = ((s * D + d) * N + i) * J * M + m;
    for (let j = 0; j < J; j++) column[j] = distances[base + j * M];
    column.sort();
    const k = count();
    let sum = 0;
    for (let j = 0; j < k; j++) sum += column[j];
    return (sum / k) * unit;
  }

  /* Eq. 3: the mean over stages and degrees. */
  function patchScores(i) {
    const scores = new Float32Array(M);
    const used = data.degrees.map((_, d) => d).filter((d) => state.degrees.has(data.degrees[d]));
    for (let s = 0; s < S; s++) for (const d of used) for (let m = 0; m < M; m++) scores[m] += intervalAverage(s, d, i, m);
    return scores.map((v) => v / (S * used.length));
  }

  /* Eq. 4-5. The image itself is the first of its window. */
  function rescored(scores) {
    const low = Math.min(...scores);
    const range = Math.max(...scores) - low || 1;
    const c = scores.map((v) => (v - low) / range);
    if (!state.windows.size) return c;
    const ranked = data.similarity.map((row) => row.map((_, j) => j).sort((a, b) => row[b] - row[a]));
    return c.map((own, i) => {
      let sum = own;
      for (const k of state.windows) {
        const window_ = ranked[i].slice(0, k);
        const weight = window_.reduce((t, j) => t + data.similarity[i][j], 0);
        sum += window_.reduce((t, j) => t + data.similarity[i][j] * c[j], 0) / weight;
      }
      return sum / (state.windows.size + 1);
    });
  }

  /* Mean over stages and chosen degrees of one patch's distance to each other image. */
  function witnesses(i, m) {
    const used = data.degrees.map((_, d) => d).filter((d) => state.degrees.has(data.degrees[d]));
    return Array.from({ length: J }, (_, j) => {
      let sum = 0;
      for (let s = 0; s < S; s++) for (const d of used) sum += distances[(((s * D + d) * N + i) * J + j) * M + m];
      return { image: other(i, j), j, distance: (sum / (S * used.length)) * unit };
    });
  }

  let maps, scores, after, highest;
  function compute() {
    maps = Array.from({ length: N }, (_, i) => patchScores(i));
    scores = maps.map((map) => map.reduce((a, b) => Math.max(a, b), 0));
    after = rescored(scores);
    highest = Math.max(...scores);
  }

  /* ---- what is seen ---- */
  const make = (tag, attributes = {}, ...children) => {
    const e = document.createElement(tag);
    for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
    e.append(...children);
    return e;
  };
  const pictures = data.pictures.map((source) => Object.assign(new Image(), { src: source }));
  const colour = (v) => data.colours[Math.max(0, Math.min(63, Math.round(v * 63)))];
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const SIDE = 320;
  const WIDE = Math.max(300, Math.min(660, root.clientWidth)); // as wide as it is shown: letters keep their size
  // one of three beside each other
  const PART = Math.min(SIDE, root.clientWidth < 600 ? root.clientWidth : (root.clientWidth - 32) / 3);
  const DOWN = WIDE < 480 ? 18 : 0; // a second line of the legend
  const cell = SIDE / W;

  const canvas = (label, width = SIDE, height = SIDE) => {
    const c = make("canvas", { role: "img", "aria-label": label, width: width * 2, height: height * 2 });
    c.style.aspectRatio = `${width} / ${height}`;
    c.style.maxWidth = `${width}px`;
    const pen = c.getContext("2d");
    pen.scale(2, 2);
    return [c, pen];
  };
  const [photo, photoPen] = canvas("the chosen image; click to choose a patch");
  const [heat, heatPen] = canvas("its anomaly map; click to choose a patch");
  const [bars, barPen] = canvas("distances of the patch to every other image", PART, 300);
  const [scale, scalePen] = canvas("colour scale of the anomaly map", PART, 34);
  const [chart, chartPen] = canvas("image scores before and after RsCIN", WIDE, 230 + DOWN);
  photo.tabIndex = 0;

  const box = (pen, m, r, colour_, width) => {
    const x = (m % W) * cell;
    const y = Math.floor(m / W) * cell;
    const h = ((r - 1) / 2) * cell;
    pen.strokeStyle = colour_;
    pen.lineWidth = width;
    pen.strokeRect(x - h, y - h, cell + 2 * h, cell + 2 * h);
  };
  const mark = (pen) => {
    const r = Math.max(...state.degrees);
    box(pen, state.patch, r, "#000", 4);
    box(pen, state.patch, r, "#fff", 2);
  };
  const outline = (pen) => {
    if (!state.mask) return;
    pen.fillStyle = "#00e5ff";
    const inside = (y, x) => y >= 0 && x >= 0 && y < H && x < W && masks[state.image * M + y * W + x];
    for (let y = 0; y < H; y++)
      for (let x = 0; x < W; x++) {
        if (!inside(y, x)) continue;
        if (!inside(y - 1, x)) pen.fillRect(x * cell, y * cell, cell, 2);
        if (!inside(y + 1, x)) pen.fillRect(x * cell, (y + 1) * cell - 2, cell, 2);
        if (!inside(y, x - 1)) pen.fillRect(x * cell, y * cell, 2, cell);
        if (!inside(y, x + 1)) pen.fillRect((x + 1) * cell - 2, y * cell, 2, cell);
      }
  };

  function drawPhoto() {
    photoPen.drawImage(pictures[state.image], 0, 0, SIDE, SIDE);
    outline(photoPen);
    mark(photoPen);
  }

  const small = make("canvas", { width: W, height: H });
  function drawHeat() {
    const pen = small.getContext("2d");
    const pixels = pen.createImageData(W, H);
    maps[state.image].forEach((v, m) => pixels.data.set([...colour(v / highest), 255], 4 * m));
    pen.putImageData(pixels, 0, 0);
    heatPen.imageSmoothingEnabled = true;
    heatPen.drawImage(small, 0, 0, SIDE, SIDE);
    outline(heatPen);
    mark(heatPen);
    scalePen.clearRect(0, 0, PART, 34);
    for (let x = 0; x < PART; x++) {
      scalePen.fillStyle = `rgb(${colour(x / PART)})`;
      scalePen.fillRect(x, 0, 1, 14);
    }
    write(scalePen, "0", 0, 29, "left");
    write(scalePen, PART < 300 ? "anomaly score, all images" : "anomaly score, one scale for all images", PART / 2, 29, "center");
    write(scalePen, highest.toFixed(2), PART, 29, "right");
  }

  const write = (pen, text, x, y, align = "left", size = 12) => {
    pen.fillStyle = css("--pst-color-text-base") || "#222";
    pen.font = `${size}px sans-serif`;
    pen.textAlign = align;
    pen.fillText(text, x, y);
  };
  const LOW = "#0072b2";
  const HIGH = "#e69f00";
  const IDLE = "#999999";

  function drawBars(found) {
    const sorted = [...found].sort((a, b) => a.distance - b.distance);
    const k = count();
    barPen.clearRect(0, 0, PART, 300);
    const step = (PART - 40) / J;
    const tall = (v) => (v / data.top) * 210;
    sorted.forEach((w, n) => {
      barPen.fillStyle = n < k ? LOW : IDLE;
      barPen.fillRect(40 + n * step + 3, 240 - tall(w.distance), step - 6, tall(w.distance));
      write(barPen, String(w.image + 1), 40 + n * step + step / 2, 256, "center", 11);
    });
    const mean = sorted.slice(0, k).reduce((t, w) => t + w.distance, 0) / k;
    barPen.strokeStyle = HIGH;
    barPen.lineWidth = 2;
    barPen.beginPath();
    barPen.moveTo(40, 240 - tall(mean));
    barPen.lineTo(PART, 240 - tall(mean));
    barPen.stroke();
    write(barPen, `mean of the lowest ${k}: ${mean.toFixed(3)}`, PART, Math.max(12, 234 - tall(sorted[J - 1].distance)), "right");
    for (const v of [0, 0.5, 1]) if (v <= data.top) write(barPen, v.toFixed(1), 32, 244 - tall(v), "right", 11);
    write(barPen, "other image, nearest first", 40 + (PART - 40) / 2, 276, "center");
    barPen.save();
    barPen.translate(10, 140);
    barPen.rotate(-Math.PI / 2);
    write(barPen, "distance", 0, 0, "center");
    barPen.restore();
  }

  function drawChart() {
    const floor = 190 + DOWN;
    chartPen.clearRect(0, 0, WIDE, 230 + DOWN);
    const low = Math.min(...scores);
    const range = Math.max(...scores) - low || 1;
    const step = (WIDE - 50) / N;
    const bar = (step - 0.24 * step) / 2;
    scores.forEach((v, i) => {
      const x = 45 + i * step;
      const tall = [((v - low) / range) * 160, after[i] * 160];
      tall.forEach((h, b) => {
        chartPen.fillStyle = b ? HIGH : LOW;
        chartPen.fillRect(x + 0.1 * step + b * (bar + 1), floor - h, bar - 1, Math.max(h, 1));
      });
      write(chartPen, `${i + 1}${data.labels[i] ? (DOWN ? "✱" : " ✱") : ""}`, x + step / 2, floor + 17, "center", 12);
      if (i === state.image) {
        chartPen.strokeStyle = css("--pst-color-text-base") || "#222";
        chartPen.lineWidth = 1.5;
        chartPen.strokeRect(x + 1, 24 + DOWN, step - 2, 188);
      }
    });
    for (const v of [0, 0.5, 1]) write(chartPen, v.toFixed(1), 38, floor + 4 - 160 * v, "right", 11);
    chartPen.fillStyle = LOW;
    chartPen.fillRect(45, 4, 12, 12);
    write(chartPen, "before RsCIN (min-max)", 62, 15);
    chartPen.fillStyle = HIGH;
    chartPen.fillRect(225, 4, 12, 12);
    write(chartPen, "after RsCIN", 242, 15);
    if (DOWN) write(chartPen, "✱ has a defect", 45, 33);
    else write(chartPen, "✱ has a defect", WIDE - 5, 15, "right");
    write(chartPen, "image", WIDE / 2 + 20, floor + 35, "center");
  }

  const near = make("div", { class: "play-near" });
  function drawNear(found) {
    near.replaceChildren();
    const r = Math.max(...state.degrees);
    const d = data.degrees.indexOf(r);
    const zoom = 7; // patches across
    const side = (data.size / W) * zoom;
    const crop = (i, m, caption) => {
      const [c, pen] = canvas(caption, 84, 84);
      const x = ((m % W) + 0.5) * (data.size / W) - side / 2;
      const y = (Math.floor(m / W) + 0.5) * (data.size / H) - side / 2;
      pen.fillStyle = "#888";
      pen.fillRect(0, 0, 84, 84);
      pen.drawImage(pictures[i], x, y, side, side, 0, 0, 84, 84);
      const half = (r / zoom) * 42;
      pen.strokeStyle = "#fff";
      pen.lineWidth = 1.5;
      pen.strokeRect(42 - half, 42 - half, 2 * half, 2 * half);
      return make("figure", {}, c, make("figcaption", {}, caption));
    };
    near.append(crop(state.image, state.patch, "this patch"));
    for (const w of [...found].sort((a, b) => a.distance - b.distance))
      near.append(crop(w.image, nearest[((d * N + state.image) * J + w.j) * M + state.patch], `${w.image + 1}: ${w.distance.toFixed(2)}`));
  }

  const said = make("p", { class: "play-said", "aria-live": "polite" });
  function draw() {
    const found = witnesses(state.image, state.patch);
    drawPhoto();
    drawHeat();
    drawBars(found);
    drawNear(found);
    drawChart();
    const order = (list) => list.filter((v) => v > list[state.image]).length + 1;
    const kind = data.labels[state.image] ? `has a defect (${data.defects[state.image].replaceAll("_", " ")})` : "is normal";
    said.textContent =
      `Image ${state.image + 1} ${kind}. Its score is ${scores[state.image].toFixed(3)}, rank ${order(scores)} of ${N} ` +
      `(after RsCIN: rank ${order(after)}). The chosen patch has ${maps[state.image][state.patch].toFixed(3)}.`;
    strip.querySelectorAll("button").forEach((b, i) => b.setAttribute("aria-pressed", i === state.image));
  }
  const all = () => {
    compute();
    draw();
  };
  const hottest = (i) => maps[i].reduce((best, v, m, a) => (v > a[best] ? m : best), 0);
  const choose = (i) => {
    state.image = i;
    state.patch = hottest(i);
    draw();
  };

  /* ---- what is clicked ---- */
  const strip = make("div", { class: "play-strip" });
  data.pictures.forEach((source, i) => {
    const name = `image ${i + 1}${data.labels[i] ? ", with a defect" : ""}`;
    const b = make("button", { type: "button", title: name, "aria-label": name }, make("img", { src: source, alt: name }));
    b.append(make("span", {}, `${i + 1}${data.labels[i] ? " ✱" : ""}`));
    b.addEventListener("click", () => choose(i));
    strip.append(b);
  });
  for (const c of [photo, heat])
    c.addEventListener("click", (event) => {
      const at = c.getBoundingClientRect();
      const x = Math.min(W - 1, Math.max(0, Math.floor(((event.clientX - at.left) / at.width) * W)));
      const y = Math.min(H - 1, Math.max(0, Math.floor(((event.clientY - at.top) / at.height) * H)));
      state.patch = y * W + x;
      draw();
    });
  photo.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    const x = Math.min(W - 1, Math.max(0, (state.patch % W) + move[0]));
    const y = Math.min(H - 1, Math.max(0, Math.floor(state.patch / W) + move[1]));
    state.patch = y * W + x;
    draw();
  });

  const tick = (text, set, value, least) => {
    const input = make("input", { type: "checkbox", value });
    input.checked = set.has(value);
    input.addEventListener("change", () => {
      if (input.checked) set.add(value);
      else if (set.size > least) set.delete(value);
      else input.checked = true; // at least so many stay
      all();
    });
    return make("label", {}, input, ` ${text}`);
  };
  const range = make("input", { type: "range", min: 10, max: 100, step: 10, value: state.percent, "aria-label": "X, percent of the other images" });
  const shown = make("output", {}, `${state.percent} %`);
  range.addEventListener("input", () => {
    state.percent = Number(range.value);
    shown.textContent = `${state.percent} %`;
    all();
  });
  const outlined = make("input", { type: "checkbox" });
  outlined.addEventListener("change", () => {
    state.mask = outlined.checked;
    draw();
  });
  const group = (title, ...items) => make("fieldset", {}, make("legend", {}, title), ...items);
  const controls = make(
    "div",
    { class: "play-controls" },
    group("Aggregation degrees r", ...data.degrees.map((r) => tick(String(r), state.degrees, r, 1))),
    group("Interval: lowest X % of the other images", range, " ", shown),
    group("RsCIN: windows k", ...Array.from({ length: 5 }, (_, n) => tick(String(n + 2), state.windows, n + 2, 0))),
    group("Masks", make("label", {}, outlined, " outline the defect")),
  );

  const part = (title, ...content) => make("div", { class: "play-part" }, make("h3", {}, title), ...content);
  root.replaceChildren(
    strip,
    controls,
    said,
    make(
      "div",
      { class: "play-parts" },
      part("Choose a patch", photo),
      part("Anomaly map", heat, scale),
      part("Its nearest patch in every other image", bars),
    ),
    part("Those patches", near),
    part("Image scores", chart),
  );
  // Sentences about these ten images, below on the page; they were checked when data.js was made.
  document.addEventListener("DOMContentLoaded", () => {
    for (const e of document.querySelectorAll("[data-finding]")) e.textContent = data.findings[e.dataset.finding];
  });
  Promise.all(pictures.map((p) => p.decode())).then(() => {
    compute();
    choose(state.image);
    root.dataset.ready = "yes";
  });
  // The theme's colours are read when something is drawn.
  new MutationObserver(() => maps && draw()).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  window.MUSC_PLAY = { state, scores: () => scores, after: () => after, map: (i) => Array.from(maps[i]) };
})();
