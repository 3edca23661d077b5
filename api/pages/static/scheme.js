// Light or dark before anything is painted; the switch is remembered by this browser alone.
(() => {
  const root = document.documentElement;
  const stored = localStorage.getItem("scheme");
  if (stored) root.dataset.scheme = stored;
  const dark = () => root.dataset.scheme ? root.dataset.scheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  addEventListener("DOMContentLoaded", () => {
    document.getElementById("scheme").addEventListener("click", () => {
      root.dataset.scheme = dark() ? "light" : "dark";
      localStorage.setItem("scheme", root.dataset.scheme);
      dispatchEvent(new Event("schemechange"));
    });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dispatchEvent(new Event("schemechange")));
})();
