"use strict";
// Selects the theme: the system's unless the reader chose one; the choice is kept only where storage is allowed.
(() => {
  const remembered = () => { try { return localStorage.getItem("spin-theme") || ""; } catch { return ""; } };
  const remember = (theme) => { try { localStorage.setItem("spin-theme", theme); } catch { /* not allowed here */ } };
  const apply = (theme) => {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
  };
  for (const input of document.querySelectorAll("input[name=theme]")) {
    input.checked = input.value === remembered();
    input.addEventListener("change", () => { apply(input.value); remember(input.value); });
  }
  apply(remembered());
})();
