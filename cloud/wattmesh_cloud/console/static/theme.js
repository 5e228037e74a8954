// Before the page is drawn, so that it does not flash: the theme chosen on this machine, else the system's.
(() => {
  const kept = localStorage.getItem("wm-theme");
  if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
})();
