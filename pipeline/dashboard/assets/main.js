// Routes (#/, #/features?q=..., #/feature/NAME) and keys.
const view = document.getElementById("view");
const search = document.getElementById("search");
const help = document.getElementById("help");

async function route() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [tab, ...rest] = path.split("/");
  tableKeys = null;
  for (const link of document.querySelectorAll("[data-tab]")) link.classList.toggle("on", link.dataset.tab === (tab ? "features" : "overview"));
  try {
    if (tab === "feature") await showFeature(view, decodeURIComponent(rest.join("/")));
    else if (tab === "features") {
      const wanted = query ? new URLSearchParams(query).get("q") ?? "" : "";
      if (wanted !== state.query) [state.query, state.chosen, state.scroll] = [wanted, 0, 0];
      if (document.activeElement !== search) search.value = wanted;
      await showTable(view);
    } else showOverview(view);
    view.dataset.shown = location.hash;
    if (tab !== "features") scrollTo(0, 0);
  } catch (error) {
    view.innerHTML = `<h1>This page cannot be shown</h1><p>${escaped(error.message)}</p>`;
  }
}

const query = (text) => `#/features${text ? `?q=${encodeURIComponent(text)}` : ""}`;
search.addEventListener("input", () => {
  state.query = search.value;
  history.replaceState(null, "", query(search.value));
  if (tableKeys) { tableKeys.arrange(); view.dataset.shown = location.hash; } else route();
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
    if (location.hash.startsWith("#/feature/")) location.hash = query(state.query);
  } else if (!typing) {
    const link = { j: '[data-step="1"]', k: '[data-step="-1"]' }[event.key];
    if (link) document.querySelector(link)?.click();
    else if (event.key === "Enter" && event.target.matches(".rows, body, .view")) tableKeys?.open();
    else if (event.key === "o") location.hash = "#/";
    else if (event.key === "f") location.hash = query(state.query);
    else if (event.key === "?") help.showModal();
    else if (event.key === "/") { search.focus(); search.select(); event.preventDefault(); }
  }
});
addEventListener("hashchange", route);
route();
