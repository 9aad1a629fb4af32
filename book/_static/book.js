// What the theme calls "Toggle hidden content", "Search" or "Color mode" to a screen reader says more in its own words.
for (const one of document.querySelectorAll("summary[aria-label], button.search-button__button, button.theme-switch-button")) {
  if (one.textContent.trim()) one.removeAttribute("aria-label");
}
// The arrows of the sidebar have no words at all.
for (const one of document.querySelectorAll("nav summary")) {
  if (!one.textContent.trim()) one.setAttribute("aria-label", "Pages of " + one.closest("li").querySelector("a").textContent.trim());
}
