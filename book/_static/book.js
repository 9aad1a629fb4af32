// What the theme calls "Toggle hidden content", "Search" or "Color mode" to a screen reader says more in its own words.
for (const one of document.querySelectorAll("summary[aria-label], button.search-button__button, button.theme-switch-button")) {
  if (one.textContent.trim()) one.removeAttribute("aria-label");
}
