// Routes (#/, #/features?q=..., #/feature/NAME) and keys.
const view = document.getElementById("view");
const search = document.getElementById("search");
const help = document.getElementById("help");

// The present route. A sandboxed frame may refuse to change its address, so the address only follows where it can.
let current = location.hash;

function go(wanted, replace) {
  current = wanted;
  try {
    if (replace) history.replaceState(null, "", wanted);
    else history.pushState(null, "", wanted);
  } catch { /* the frame has no address of its own */ }
}

function visit(wanted) {
  go(wanted);
  return route();
}

// Pages are drawn when their data are there; `latest` says whether no other page was asked for meanwhile.
let visits = 0;

async function route(typing) {
  const mine = ++visits, latest = () => mine === visits;
  const [path, query] = current.replace(/^#\/?/, "").split("?");
  const [tab, ...rest] = path.split("/");
  tableKeys = null;
  for (const link of document.querySelectorAll("[data-tab]")) link.classList.toggle("on", link.dataset.tab === (tab ? "features" : "overview"));
  try {
    if (tab === "feature") await showFeature(view, decodeURIComponent(rest.join("/")), latest);
    else if (tab === "features") {
      const wanted = query ? new URLSearchParams(query).get("q") ?? "" : "";
      if (wanted !== state.query) [state.query, state.chosen, state.scroll] = [wanted, 0, 0];
      if (!typing) search.value = wanted;
      await showTable(view, latest);
    } else showOverview(view);
    if (!latest()) return;
    if (tab !== "features") scrollTo(0, 0);
  } catch (error) {
    if (!latest()) return;
    view.innerHTML = `<h1>This page cannot be shown</h1><p>${escaped(error.message)}</p>`;
  }
  view.dataset.shown = current;
  performance.mark("shown");
}

const query = (text) => `#/features${text ? `?q=${encodeURIComponent(text)}` : ""}`;
search.addEventListener("input", () => {
  [state.query, state.chosen, state.scroll] = [search.value, 0, 0];
  go(query(search.value), tableKeys !== null);
  if (tableKeys) { tableKeys.arrange(); view.dataset.shown = current; } else route(true);
});
search.form.addEventListener("submit", (event) => {
  event.preventDefault();
  tableKeys?.open();
});

document.getElementById("help-button").addEventListener("click", () => help.showModal());
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  const typing = event.target.matches("input, select");
  const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12 };
  if (tableKeys && event.key in moves && (!typing || event.target === search)) {
    tableKeys.choose(moves[event.key]);
    event.preventDefault();
  } else if (event.key === "Escape") {
    event.target.blur();
    if (current.startsWith("#/feature/")) visit(query(state.query));
  } else if (!typing) {
    const link = { j: '[data-step="1"]', k: '[data-step="-1"]' }[event.key];
    if (link) document.querySelector(link)?.click();
    else if (event.key === "Enter" && event.target.matches(".rows, body, .view")) tableKeys?.open();
    else if (event.key === "o") visit("#/");
    else if (event.key === "f") visit(query(state.query));
    else if (event.key === "?") help.showModal();
    else if (event.key === "/") { search.focus(); search.select(); event.preventDefault(); }
  }
});
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#/"]');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  visit(link.getAttribute("href"));
});
for (const event of ["popstate", "hashchange"]) {
  addEventListener(event, () => {
    if (current !== location.hash) { current = location.hash; route(); }
  });
}
route();
