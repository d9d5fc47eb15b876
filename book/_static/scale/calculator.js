/* Time and memory of mutual scoring for the reader's own numbers; what was measured stands in the element's data. */
(() => {
  "use strict";
  const root = document.getElementById("scale-calculator");
  if (!root) return;
  const known = Object.fromEntries(Object.entries(root.dataset).map(([k, v]) => [k, Number(v)]));
  const GIB = 2 ** 30;
  const FIELDS = [
    ["images", "Images N", 1000, 2],
    ["rows", "Patches per side", 37, 1],
    ["channels", "Channels C", 1024, 1],
    ["stages", "Stages", 4, 1],
    ["degrees", "Degrees", 3, 1],
    ["threads", "CPU threads", 8, 1],
    ["memory", "Memory beyond the tokens (GiB)", 8, 0.1],
  ];
  const WAYS = [
    ["exact", "all others"],
    ["near", "20 % look-alikes"],
    ["references", "40 random references"],
  ];

  const form = document.createElement("form");
  const inputs = {};
  for (const [name, text, value, least] of FIELDS) {
    const label = form.appendChild(document.createElement("label"));
    label.textContent = text + " ";
    const input = label.appendChild(document.createElement("input"));
    Object.assign(input, { type: "number", value, min: least, step: "any", name });
    inputs[name] = input;
  }
  const choice = (name, text, options) => {
    const label = form.appendChild(document.createElement("label"));
    label.textContent = text + " ";
    const select = label.appendChild(document.createElement("select"));
    select.name = name;
    for (const [value, shown] of options) select.add(new Option(shown, value));
    inputs[name] = select;
  };
  choice("way", "Each image is scored by", WAYS);
  choice("device", "Device", [["cpu", "CPU"], ["gpu", "one H200"]]);
  const answer = document.createElement("dl");
  answer.setAttribute("aria-live", "polite");
  root.replaceChildren(form, answer);

  const duration = (s) =>
    s < 1 ? "under a second" : s < 120 ? `${s.toPrecision(2)} s` : s < 7200 ? `${Math.round(s / 60)} min`
      : s < 172800 ? `${(s / 3600).toPrecision(2)} h` : `${(s / 86400).toPrecision(2)} days`;
  const size = (b) => (b < GIB / 10 ? `${Math.round(b / 2 ** 20)} MiB` : `${(b / GIB).toPrecision(3)} GiB`);

  function compute(v) {
    const N = Math.max(2, Math.floor(v.images));
    const M = Math.floor(v.rows) ** 2;
    const others = v.way === "references" ? Math.min(40, N - 1) : v.way === "near" ? Math.ceil(0.2 * (N - 1)) : N - 1;
    const all = (N * (N - 1)) / 2;
    const pairs = v.way === "near" ? Math.min(all, all * known.near) : (N * others) / 2;
    const unit = 4 * v.degrees * M; // bytes of one image's distances to one other
    const bound = v.memory * GIB;
    const whole = N * others * unit;
    // distances wait for images whose turn comes later: a quarter of all, or groups of which each pair is met twice
    const group = whole < bound ? N : Math.min(N, 2 * Math.sqrt((0.8 * bound * (N - 1)) / (unit * others)));
    const groups = Math.floor(N / group);
    const again = group >= N ? 1 : 2 - (groups * group ** 2 + (N - groups * group) ** 2) / N ** 2;
    const work = (M * M * (v.channels + (known.box * v.degrees) / 3)) / (196 * 196 * (384 + known.box));
    const cpu = (known.pair * work * pairs * v.stages * again) / v.threads;
    const gpu = known.gpuPair * ((M * M * v.channels) / known.gpuWork) ** known.gpuPower * (v.degrees / 3) * pairs * v.stages;
    const words = ["musc run photos/"];
    if (v.way === "near") words.push("--neighbours 0.2");
    if (v.way === "references") words.push("--references 40");
    if (v.device === "gpu") words.push("--device cuda");
    if (whole >= bound) words.push(`--max-memory ${v.memory}GiB`);
    return {
      "Pairs of images": `${Math.round(pairs).toLocaleString("en")} × ${v.stages} stages`,
      "Time of mutual scoring, about": duration(v.device === "gpu" ? gpu * again : cpu),
      "Tokens": size(4 * N * M * v.channels * v.stages),
      "All distances of a stage at once": size(whole),
      "Memory that is taken beyond the tokens": size(Math.min(whole, bound)),
      "Comparisons made again to stay below it": `${Math.round(100 * (again - 1))} %`,
      "Command": words.join(" "),
    };
  }

  function show() {
    const v = Object.fromEntries(Object.entries(inputs).map(([k, i]) => [k, i.type === "number" ? Number(i.value) : i.value]));
    answer.replaceChildren();
    if (FIELDS.some(([name, , , least]) => !(v[name] >= least))) {
      answer.textContent = "Give numbers.";
      return;
    }
    for (const [name, value] of Object.entries(compute(v))) {
      answer.appendChild(document.createElement("dt")).textContent = name;
      answer.appendChild(document.createElement("dd")).textContent = value;
    }
  }
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
})();
