// Before anything is painted: the theme that was chosen, if one was. Without a choice the system's preference holds.
(() => {
  try {
    const chosen = localStorage.getItem("skerry-theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    // Storage may be forbidden; the system's preference is then all there is.
  }
})();
