// Routes (#/, #/features?q=...&sort=..., #/feature/NAME) and keys.
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

// The address and the links to the table follow what it shows.
function follow() {
  go(tableLink(), true);
  view.dataset.shown = current;
  named();
}

// The page's name in the browser's title and history.
function named() {
  document.querySelector('[data-tab="features"]').setAttribute("href", tableLink());
  const tab = current.replace(/^#\/?/, "").split(/[/?]/, 1)[0];
  const page = tab === "kept" ? "Kept features" : tab === "feature" ? view.querySelector("h1").firstChild.textContent : tab === "features" ? `Features${state.query ? `: ${visible(state.query)}` : ""}` : "";
  document.title = page ? `${page} \u00b7 ${overview.about}` : overview.about;
}

function visit(wanted) {
  go(wanted);
  return route();
}

// Pages are drawn when their data are there; `latest` says whether no other page was asked for meanwhile.
let visits = 0;

async function route(typing) {
  const mine = ++visits, latest = () => mine === visits;
  const path = current.replace(/^#\/?/, "").replace(/\?.*/s, ""), query = current.replace(/^[^?]*\??/, "");
  const [tab, ...rest] = path.split("/");
  tableKeys = null;
  for (const link of document.querySelectorAll("[data-tab]")) link.classList.toggle("on", link.dataset.tab === (tab === "kept" ? "kept" : tab ? "features" : "overview"));
  try {
    if (tab === "feature") await showFeature(view, readable(rest.join("/")), latest);
    else if (tab === "features") {
      const wanted = linked(query), before = tableLink();
      Object.assign(state, wanted);
      if (tableLink() !== before) [state.chosen, state.scroll, state.order] = [0, 0, []];
      if (!typing) search.value = wanted.query;
      await showTable(view, latest);
    } else if (tab === "kept") await showKept(view, latest);
    else if (tab === "") showOverview(view);
    else throw new Error(`There is no page \u201c${path}\u201d here; the link is for something else or was cut.`);
    if (!latest()) return;
    if (tab !== "features") scrollTo(0, 0);
  } catch (error) {
    if (!latest()) return;
    view.innerHTML = `<h1>This page cannot be shown</h1><p>${escaped(error.message)}</p><p><a href="#/">Overview</a>, <a href="#/features">features</a></p>`;
  }
  view.dataset.shown = current;
  named();
  performance.mark("shown");
}

// A part of a link without its escapes, or as it stands where these are broken.
function readable(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}

search.addEventListener("input", () => {
  [state.query, state.chosen, state.scroll] = [search.value, 0, 0];
  if (tableKeys) {
    tableKeys.arrange();
    follow();
  } else {
    state.order = [];
    go(tableLink());
    route(true);
  }
});
search.form.addEventListener("submit", (event) => {
  event.preventDefault();
  tableKeys?.open();
});

document.getElementById("help-button").addEventListener("click", () => help.showModal());
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  const typing = event.target.matches("input, select, textarea");
  const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12, Home: -Infinity, End: Infinity };
  const inside = event.key === "Home" || event.key === "End"; // keys of the search box itself
  if (tableKeys && event.key in moves && (!typing || (event.target === search && !inside))) {
    tableKeys.choose(moves[event.key]);
    event.preventDefault();
  } else if (event.key === "Escape") {
    event.target.blur();
    if (current.startsWith("#/feature/")) visit(tableLink());
  } else if (!typing) {
    const link = { j: '[data-step="1"]', k: '[data-step="-1"]' }[event.key];
    if (link) document.querySelector(link)?.click();
    else if (event.key === "Enter" && event.target.matches(".rows, .space, body, .view")) tableKeys?.open();
    else if (event.key === "o") visit("#/");
    else if (event.key === "f") visit(tableLink());
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
