// What is wrong with the page that is open, as a reader sees it: a list of [kind, where]. Run by tools/gate.py, which
// says what each kind means. `look`: {width, phone, dark}; what depends on neither width nor colours is looked at once.
(look) => {
  const article = document.querySelector(".bd-article") ?? document.body;
  const all = (selector, root = article) => [...root.querySelectorAll(selector)];
  const style = (element) => getComputedStyle(element);
  const seen = (element) => element.checkVisibility({ visibilityProperty: true }) && element.getClientRects().length > 0;
  const short = (text) => text.replace(/\s+/g, " ").trim().slice(0, 60);
  const faults = [];
  const fault = (kind, where) => faults.push([kind, where]);
  const CODE = "pre, code, kbd, dt.sig, .highlight, script, style, mjx-container, textarea";

  // Every piece of text with the element around it, MathJax's own left out.
  const pieces = [];
  const walk = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const parent = walk.currentNode.parentElement;
    if (walk.currentNode.data.trim() && !parent.closest("script, style, mjx-container")) pieces.push([walk.currentNode, parent]);
  }

  function words() {
    if (document.documentElement.outerHTML.match(/\bOWNER\b/)) fault("placeholder", "OWNER");
    for (const [node, parent] of pieces) {
      for (const word of node.data.match(/\b(TODO|FIXME|TBD|XXX)\b|[Ll]orem ipsum/g) ?? []) fault("placeholder", word);
      if (parent.closest(CODE)) continue;
      for (const braces of node.data.match(/\{\{.*?\}\}/g) ?? []) fault("placeholder", braces);
      for (const token of node.data.match(/\b[A-Z][A-Z0-9]*(_[A-Z0-9]+)+\b/g) ?? []) fault("placeholder", token);
      for (const role of node.data.match(/\{(\w+:)?\w+\}`/g) ?? []) fault("placeholder", role);
      for (const formula of node.data.match(/\$[^$\n]+\$|\\[([].+?\\[)\]]/g) ?? []) fault("raw formula", formula);
    }
    for (const caption of all("figcaption, caption, .caption-text")) {
      const number = caption.querySelector(".caption-number");
      const rest = number && caption.textContent.replace(number.textContent, "").trim();
      if (rest?.match(number.textContent.trim().startsWith("Tab") ? /^Tab(le|\.)?\s*\d/ : /^Fig(ure|\.)?\s*\d/))
        fault("two numbers", short(caption.textContent));
    }
  }

  const wraps = (pre) => style(pre).whiteSpace !== "pre";
  const tooWide = (pre) => !wraps(pre) && pre.textContent.split("\n").find((line) => line.length > 90);

  function cells() {
    for (const pre of all("div.highlight pre")) {
      const lines = pre.textContent.trimEnd().split("\n");
      const folded = pre.closest("details, .dropdown, .toggle");
      if (lines.length > 30 && !folded && pre.closest(".cell_input")) fault("long cell", `${lines.length} lines: ${short(lines[0])}`);
      const wide = tooWide(pre);
      if (wide) fault("wide code", `${wide.length} columns: ${short(wide)}`);
    }
  }

  function pictures() {
    for (const image of all("img")) {
      const file = decodeURI(image.src).split("/").pop();
      if (!image.alt.trim() || image.alt.endsWith(file)) fault("no alt text", file);
      if (!image.naturalWidth) fault("missing picture", file);
    }
    for (const math of all(".math")) {
      const bad = math.querySelector("mjx-merror, [data-mjx-error]");
      if (bad || !math.querySelector("mjx-container")) fault("raw formula", short(math.textContent));
    }
  }

  // Docstrings name the equations of their own papers.
  function equations() {
    if (location.pathname.includes("/api/")) return;
    for (const math of all("div.math"))
      if (!math.querySelector("mjx-labels, .eqno")) fault("no equation number", short(math.textContent));
    for (const [node, parent] of pieces) {
      if (parent.closest(`a, h1, h2, h3, h4, .quizzes, .output, ${CODE}`)) continue;
      for (const name of node.data.match(/\bEq\. ?\d[\d.]*/g) ?? []) fault("dead equation", `${name} in: ${short(parent.textContent)}`);
    }
  }

  function chapter() {
    const number = location.pathname.match(/\/notebooks\/(\d\d)_[^/]*$/);
    if (!number) return;
    const wanted = `${Number(number[1])}.`;
    const heading = article.querySelector("h1")?.textContent ?? "";
    const entry = document.querySelector(".bd-sidebar-primary .current > a, .bd-sidebar-primary a.current")?.textContent ?? "";
    for (const [place, text] of [["heading", heading], ["sidebar", entry]])
      if (!text.trim().startsWith(wanted)) fault("unnumbered chapter", `${place}: ${short(text)}`);
  }

  // --- layout

  // What may be cut off, by the nearest box around it that shows no more than its own size.
  const INK = "mjx-c, mjx-utext, td, th, img, canvas, svg";
  const hides = (value) => value === "hidden" || value === "clip";
  const boxes = new Map();
  function box(element) {
    if (!element || element === document.documentElement) return null;
    if (!boxes.has(element)) {
      const { overflowX, overflowY, display } = style(element);
      const cuts = (overflowX !== "visible" || overflowY !== "visible") && display !== "inline" && display !== "contents";
      boxes.set(element, cuts && !element.localName.startsWith("mjx-") ? element : box(element.parentElement));
    }
    return boxes.get(element);
  }

  function clipped() {
    const { scrollWidth } = document.documentElement;
    const clientWidth = look.width; // a phone zooms out instead
    if (scrollWidth > clientWidth) {
      const wide = all("*").find((e) => e.getBoundingClientRect().right > clientWidth + 1 && seen(e) && !box(e.parentElement));
      fault("page scrolls sideways", `${scrollWidth} px: ${short(wide?.outerHTML ?? "")}`);
    }
    const inside = Map.groupBy(all(INK).filter(seen), (e) => box(e.parentElement));
    for (const [around, ink] of inside) {
      if (!around) continue;
      const edge = around.getBoundingClientRect();
      const rects = ink.map((e) => e.getBoundingClientRect()).filter((r) => r.width && r.height);
      const out = {
        // Never scrollable, so out of reach:
        top: edge.top - around.scrollTop - Math.min(...rects.map((r) => r.top)),
        left: edge.left - around.scrollLeft - Math.min(...rects.map((r) => r.left)),
        bottom: Math.max(...rects.map((r) => r.bottom)) - edge.bottom,
        // On a desktop, what needs scrolling is cut off for a reader who does not know of the rest.
        right: !look.phone || hides(style(around).overflowX) ? Math.max(...rects.map((r) => r.right)) - edge.right : 0,
      };
      for (const [side, pixels] of Object.entries(out))
        if (pixels > 1) fault("clipped", `${Math.round(pixels)} px at the ${side}: ${short(around.textContent)}`);
    }
    for (const text of all("*")) {
      const { overflowX, overflowY, clipPath } = style(text);
      if (!hides(overflowX) && !hides(overflowY)) continue;
      if (text.closest("mjx-container, .math") || text.querySelector("mjx-container") || clipPath !== "none") continue;
      if (!seen(text) || text.clientWidth < 2 || !text.textContent.trim()) continue;
      const right = hides(overflowX) ? text.scrollWidth - text.clientWidth : 0;
      const bottom = hides(overflowY) ? text.scrollHeight - text.clientHeight : 0;
      if (Math.max(right, bottom) > 1) fault("clipped", `${Math.max(right, bottom)} px: ${short(text.textContent)}`);
    }
    if (!look.phone)
      for (const pre of all("div.highlight pre"))
        if (pre.scrollWidth > pre.clientWidth + 1 && !tooWide(pre)) fault("wide code", `${pre.scrollWidth - pre.clientWidth} px too wide: ${short(pre.textContent)}`);
  }

  function split() {
    const range = document.createRange();
    for (const [node, parent] of pieces) {
      if (!parent.closest("code, td, th, p, li, h1, h2, h3, dt, figcaption") || parent.closest("pre") || !seen(parent)) continue;
      range.selectNodeContents(node);
      const address = /^https?:/.test(parent.closest("a")?.textContent.trim() ?? "");  // which may break
      if (address || range.getClientRects().length < 2) continue;
      for (const word of node.data.matchAll(/--[a-z][\w-]*|[\p{L}\p{N}]{2,}/gu)) {
        range.setStart(node, word.index);
        range.setEnd(node, word.index + word[0].length);
        const rows = new Set([...range.getClientRects()].map((r) => Math.round(r.top)));
        if (rows.size > 1) fault("split word", `${word[0]} in: ${short(parent.textContent)}`);
      }
    }
  }

  // --- letters

  const channels = (colour) => colour.match(/[\d.]+/g).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const grounds = new Map();
  function ground(element) {
    if (!element) return [255, 255, 255];
    if (!grounds.has(element)) {
      const [r, g, b, a = 1] = channels(style(element).backgroundColor);
      grounds.set(element, a > 0.5 ? [r, g, b] : ground(element.parentElement));
    }
    return grounds.get(element);
  }

  function letters() {
    const known = new Set();
    for (const [node, parent] of pieces) {
      if (known.has(parent) || !seen(parent)) continue;
      known.add(parent);
      const { fontSize, fontWeight, color } = style(parent);
      const text = short(node.data);
      const size = parseFloat(fontSize);
      if (size > 0 && size < 11 && !parent.closest("sup, sub")) fault("small text", `${fontSize}: ${text}`);
      if (Number(fontWeight) < 400) fault("thin text", `weight ${fontWeight}: ${text}`);
      const [high, low] = [luminance(channels(color).slice(0, 3)), luminance(ground(parent))].sort((a, b) => b - a);
      const contrast = (high + 0.05) / (low + 0.05);
      if (contrast < 4.5) fault("weak contrast", `${contrast.toFixed(1)}: ${text}`);
    }
  }

  // What is folded is read, too.
  for (const fold of all("details")) fold.open = true;
  for (const fold of all(".toggle-hidden")) fold.classList.remove("toggle-hidden");

  if (!look.phone && !look.dark) [words, cells, pictures, equations, chapter].forEach((check) => check());
  if (look.dark)
    for (const image of all("img")) if (style(image).filter !== "none") fault("dimmed picture", short(image.alt));
  if (!look.dark) [clipped, split].forEach((check) => check());
  letters();
  return faults;
}
