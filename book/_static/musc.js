/* A page opened from disk may not read other pages: search then lists titles without excerpts, and no errors. */
if (location.protocol === "file:") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

/* Figures that are too wide for a phone, each in a box that can scroll; musc.css says when it does. */
document.addEventListener("DOMContentLoaded", () => {
  for (const image of document.querySelectorAll(".bd-article :is(figure, .cell_output) img")) {
    const box = () => {
      if (image.naturalWidth <= 640) return;
      const wide = document.createElement("div");
      wide.className = "wide";
      wide.style.setProperty("--width", `${Math.min(image.naturalWidth, 736)}px`);
      image.replaceWith(wide);
      wide.append(image);
    };
    image.complete ? box() : image.addEventListener("load", box, { once: true });
  }
});
