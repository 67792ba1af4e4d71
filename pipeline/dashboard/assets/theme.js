"use strict";
// Light, dark, or as the system has it; kept in this browser, for all dashboards that are opened from disk.
function themed() {
  const order = ["", "light", "dark"], names = { "": "as the system", light: "light", dark: "dark" }, signs = { "": "\u25d1", light: "\u2600", dark: "\u263e" };
  const button = document.getElementById("theme");
  let now = "";
  try { now = localStorage.getItem("scopeline-theme") ?? ""; } catch { /* a frame without storage */ }
  const show = () => {
    if (now) document.documentElement.dataset.theme = now;
    else delete document.documentElement.dataset.theme;
    button.textContent = signs[now] ?? signs[""];
    button.title = `Colours: ${names[now] ?? names[""]}`;
    button.setAttribute("aria-label", button.title);
  };
  button.addEventListener("click", () => {
    now = order[(order.indexOf(now) + 1) % order.length];
    try { localStorage.setItem("scopeline-theme", now); } catch { /* it holds until the page is closed */ }
    show();
  });
  show();
}
themed();
