// What is wrong with the deck that is open: a list of [slide, fault]. Run by tools/course_slides.py.
() => {
  const faults = [];
  const short = (text) => text.replace(/\s+/g, " ").trim().slice(0, 60);
  const light = (colour) => colour.match(/[\d.]+/g).slice(0, 3).reduce((sum, v, i) => sum + [0.2126, 0.7152, 0.0722][i] * (v / 255) ** 2.2, 0);
  const before = document.documentElement.dataset.theme;
  for (const theme of ["light", "dark"]) {
    document.documentElement.dataset.theme = theme;
    const [ink, ground] = [getComputedStyle(document.querySelector(".reveal")).color, getComputedStyle(document.body).backgroundColor].map(light);
    const contrast = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
    if (contrast < 7 || (theme === "dark") !== ground < 0.2) faults.push([0, `${theme}: contrast of ${contrast.toFixed(1)}`]);
  }
  document.documentElement.dataset.theme = before;
  const sections = [...document.querySelectorAll(".slides > section")];
  sections.forEach((section, n) => {
    Reveal.slide(n);
    const fault = (text) => faults.push([n + 1, text]);
    const edge = section.getBoundingClientRect();
    const low = section.querySelector(".from") ? 720 - 38 : 720; // above the line that names the chapter
    if (section.scrollHeight > section.clientHeight + 1) fault(`overflows by ${section.scrollHeight - section.clientHeight} px`);
    if (!section.querySelector("h1, h2")) fault("no heading");
    for (const element of section.querySelectorAll("*")) {
      if (element.closest("aside, script, mjx-assistive-mml") || !element.getClientRects().length) continue;
      const box = element.getBoundingClientRect();
      const isolated = element.closest("mjx-container") && element.localName !== "mjx-container";
      if (!isolated && (box.right > edge.left + 1281 || box.left < edge.left - 1)) fault(`wider than the slide: ${short(element.textContent) || element.localName}`);
      if (!isolated && !element.matches(".from") && box.bottom > edge.top + low + 1) fault(`below the slide's end: ${short(element.textContent) || element.localName}`);
      if (element.matches("pre") && element.scrollWidth > element.clientWidth + 1) fault(`code cut off: ${short(element.textContent)}`);
      const own = [...element.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
      const size = parseFloat(getComputedStyle(element).fontSize);
      if (own && size < 18 && !isolated && !element.closest("sup, sub")) fault(`${size} px: ${short(element.textContent)}`);
      if (element.matches("img")) {
        if (!element.alt.trim()) fault("no alt text");
        if (!element.naturalWidth) fault(`missing picture ${element.src.split("/").pop()}`);
        if (box.height < 200) fault(`a figure of ${Math.round(box.height)} px`);
      }
    }
    for (const formula of section.innerText.match(/\\[([].+?\\[)\]]|\$[^$\n]+\$/g) ?? []) fault(`raw formula: ${formula}`);
  });
  return faults;
}
