/* A page opened from disk may not read other pages: search then lists titles without excerpts, and no errors. */
if (location.protocol === "file:") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}
