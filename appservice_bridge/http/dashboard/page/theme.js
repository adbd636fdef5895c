// Before anything is painted: the theme that was chosen here last, or the system's.
"use strict";
(() => {
  const ORDER = ["system", "light", "dark"];
  const root = document.documentElement;
  let theme = "system";
  try {
    const kept = localStorage.getItem("theme");
    if (ORDER.includes(kept)) theme = kept;
  } catch {
    // storage is off: the system's theme
  }

  function apply() {
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
  }

  function show(button) {
    button.textContent = `Theme: ${theme}`;
  }

  apply();
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    show(button);
    button.addEventListener("click", () => {
      theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length];
      try {
        localStorage.setItem("theme", theme);
      } catch {
        // it holds until the page is left
      }
      apply();
      show(button);
      dispatchEvent(new Event("themechange"));
    });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
    dispatchEvent(new Event("themechange")));
})();
