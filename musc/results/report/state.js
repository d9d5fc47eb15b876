"use strict";
// What the page knows: the result's columns, the threshold, the marks. Nothing here touches an image or the grid.
const DATA = JSON.parse(document.getElementById("data").textContent);
const N = DATA.paths.length;
const byId = id => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};
const digits = v => Number.isFinite(v) ? Number(v.toPrecision(4)).toString() : "";
const percent = v => Number.isFinite(v) ? `${(100 * v).toFixed(1)} %` : "–";
const say = text => { byId("status").textContent = text; };

const LOWEST = Math.min(...DATA.raw), HIGHEST = Math.max(...DATA.raw);
const MARGIN = (HIGHEST - LOWEST || Math.abs(HIGHEST) || 1) * 0.02;
const state = {
  threshold: DATA.threshold ?? HIGHEST + MARGIN, view: "overlay", opacity: 0.7, current: 0, shown: [],
  marks: new Map(Object.entries(DATA.marks)),
};
const anomalous = i => DATA.raw[i] >= state.threshold;
const mark = i => state.marks.get(DATA.paths[i]);

// Labels of the data set where there are some, else the marks.
const known = i => DATA.labels ? DATA.labels[i] : mark(i);

function counts(threshold) {
  const c = { tp: 0, fp: 0, fn: 0, tn: 0 };
  for (let i = 0; i < N; i++) {
    const label = known(i);
    if (label === undefined) continue;
    c[DATA.raw[i] >= threshold ? (label ? "tp" : "fp") : (label ? "fn" : "tn")]++;
  }
  return c;
}

const f1 = c => c.tp ? 2 * c.tp / (2 * c.tp + c.fp + c.fn) : 0;

// Of the largest F1 the highest threshold, halfway to the next lower known score (as `thresholds.f1_max_threshold`).
function bestThreshold() {
  const scored = [];
  for (let i = 0; i < N; i++) if (known(i) !== undefined) scored.push([DATA.raw[i], known(i)]);
  scored.sort((a, b) => b[0] - a[0]);
  const positives = scored.filter(s => s[1]).length;
  if (!positives || positives === scored.length) return null;
  let best = -1, at = null, hits = 0;
  for (let n = 0; n < scored.length; n++) {
    hits += scored[n][1];
    if (n + 1 < scored.length && scored[n + 1][0] === scored[n][0]) continue;
    const value = 2 * hits / (n + 1 + positives);
    if (value > best) [best, at] = [value, n + 1 < scored.length ? Math.fround((scored[n][0] + scored[n + 1][0]) / 2) : scored[n][0]];
  }
  return at;
}

// The step of the maps' grey at which the threshold lies: they are rounded up, so what reaches one reaches the other.
const level = () => {
  const [low, high] = DATA.scale;
  return Math.ceil(255 * (state.threshold - low) / (high - low) - 1e-9);
};

// Marks stay in this browser, under the result's fingerprint; a browser may refuse, and then they live with the page.
const STORE = `musc marks ${DATA.key}`;
try {
  const kept = localStorage.getItem(STORE);
  if (kept) state.marks = new Map(Object.entries(JSON.parse(kept)));
} catch { /* nothing was kept */ }
function keepMarks() {
  try { localStorage.setItem(STORE, JSON.stringify(Object.fromEntries(state.marks))); } catch { /* not allowed */ }
}

const quoted = text => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
function marksAsCsv() {
  const rows = DATA.paths.map((path, i) => [path, mark(i), DATA.raw[i]]).filter(row => row[1] !== undefined);
  return ["path,label,raw_score", ...rows.map(([path, label, raw]) => `${quoted(path)},${label},${raw}`)].join("\r\n") + "\r\n";
}

function marksFromCsv(text) {
  const rows = [];
  let row = [""], open = false;
  for (let n = 0; n < text.length; n++) {
    const c = text[n];
    if (open) {
      if (c !== '"') row[row.length - 1] += c;
      else if (text[n + 1] === '"') row[row.length - 1] += text[++n];
      else open = false;
    } else if (c === '"') open = true;
    else if (c === ",") row.push("");
    else if (c === "\n") { rows.push(row); row = [""]; }
    else if (c !== "\r" && c !== "\ufeff") row[row.length - 1] += c;
  }
  rows.push(row);
  const [path, label] = ["path", "label"].map(name => rows[0].indexOf(name));
  const ours = new Set(DATA.paths), words = { 0: 0, 1: 1, good: 0, bad: 1 };
  const found = rows.slice(1).filter(r => ours.has(r[path]) && r[label] in words);
  for (const r of found) state.marks.set(r[path], words[r[label]]);
  return found.length;
}
