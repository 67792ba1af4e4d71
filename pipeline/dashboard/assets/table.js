// The table of features: sorted and filtered by index, and only the rows in sight are in the page.
const ROW = 34;
const COLUMNS = [
  { key: "feature", title: "feature", width: "92px", text: (c, r) => `<span>${c.name[r]}</span>` },
  { key: "fires", title: "fires on", width: "minmax(160px,1.5fr)", sort: "fireText", text: (c, r) => `<span>${chips(c, c.fires[r])}</span>` },
  { key: "promotes", title: "promotes", width: "minmax(140px,1.3fr)", sort: "promoteText", text: (c, r) => `<span>${chips(c, c.promotes[r])}</span>` },
  { key: "explanation", title: "explanation", width: "minmax(160px,1.6fr)", sort: "explainText", text: (c, r) => `<span>${escaped(c.explanation[r]?.[0] ?? "")}</span>` },
  { key: "density", title: "density", width: "150px", number: true, text: (c, r) => `<span class="num">${meter(c.density[r])}${percent(c.density[r])}</span>` },
  { key: "max", title: "maximum", width: "84px", number: true },
  { key: "mean", title: "mean", width: "84px", number: true },
  { key: "kurtosis", title: "logit kurtosis", width: "104px", number: true },
  { key: "energy", title: "energy", width: "84px", number: true, text: (c, r) => `<span class="num">${percent(c.energy[r])}</span>` },
];
const hints = {
  fires: "tokens on which it is strongest", promotes: "next tokens whose logits it raises most", density: "share of the tokens on which it is active",
  max: "largest activation", mean: "mean activation when active", kurtosis: "excess kurtosis of its effect on the logits: high is a few tokens",
  energy: "its share of the squared length of all that the features write", feature: "number", explanation: "automatic explanation",
};
const state = { sort: "energy", down: true, query: "", status: "alive", layer: "", low: "", high: "", order: [], chosen: 0, scroll: 0 };

// The density on a logarithmic scale from 1e-6 to 1.
const meter = (density) => `<i class="scale"><i class="meter" style="width:${density > 0 ? Math.max(3, 100 * (1 + Math.log10(density) / 6)) : 0}%"></i></i>`;

// Rows that pass the filters, in the order of the sort; missing values last.
function arranged(columns) {
  const query = state.query.toLowerCase(), low = Number(state.low) / 100, high = state.high === "" ? Infinity : Number(state.high) / 100;
  const passes = (r) => {
    const density = columns.density[r];
    if (state.status === "alive" && !(density > 0)) return false;
    if (state.status === "dead" && density > 0) return false;
    if (state.status === "dense" && !(density > 0.1)) return false;
    if (state.layer !== "" && columns.layer[r] !== Number(state.layer)) return false;
    if (density < low || density > high) return false;
    return !query || columns.name[r] === query || columns.fireText[r].includes(query) || columns.promoteText[r].includes(query) ||
      (columns.explainText[r] ?? "").includes(query);
  };
  const rows = columns.feature.map((_, r) => r).filter(passes);
  const key = columns[COLUMNS.find((column) => column.key === state.sort).sort ?? state.sort], sign = state.down ? -1 : 1;
  rows.sort((a, b) => {
    const x = key[a], y = key[b];
    if (x === y) return a - b;
    if (x === null || x === "") return 1;
    if (y === null || y === "") return -1;
    return x < y ? -sign : sign;
  });
  const exact = columns.byName.get(query.trim()); // a number names a feature, whatever the filters say
  return exact === undefined ? rows : [exact, ...rows.filter((r) => r !== exact)];
}

function filters(columns) {
  const layers = [...new Set(columns.layer)].filter((layer) => layer !== null);
  const option = (value, text, now) => `<option value="${value}"${String(value) === now ? " selected" : ""}>${text}</option>`;
  const layer = layers.length ? `<label>layer <select name="layer">${option("", "all", state.layer)}${layers.map((l) => option(l, l, state.layer)).join("")}</select></label>` : "";
  const status = [["alive", "active here"], ["", "all"], ["dense", "dense (above 10 %)"], ["dead", "never active here"]];
  return `<form class="filters"><span id="count"></span>
    <label>show <select name="status">${status.map(([value, text]) => option(value, text, state.status)).join("")}</select></label>${layer}
    <label>density from <input name="low" type="number" min="0" max="100" step="any" value="${escaped(state.low)}"> %</label>
    <label>to <input name="high" type="number" min="0" max="100" step="any" value="${escaped(state.high)}"> %</label></form>`;
}

async function showTable(view, latest) {
  const columns = await table();
  if (!latest()) return;
  const shown = COLUMNS.filter((column) => columns[column.key]);
  const head = shown.map(({ key, title, number: right }) =>
    `<button type="button" data-sort="${key}" title="${hints[key]}" class="${right ? "num" : ""}">${title}</button>`);
  view.innerHTML = `${filters(columns)}<div class="grid head">${head.join("")}</div><div class="rows" tabindex="0" role="listbox" aria-label="Features"><div class="space"></div></div>`;
  view.style.setProperty("--columns", shown.map((column) => column.width).join(" "));
  const rows = view.querySelector(".rows"), space = view.querySelector(".space");
  const cell = (column, r) => column.text?.(columns, r) ?? `<span class="num">${number(columns[column.key][r])}</span>`;

  function draw() {
    const first = Math.max(0, Math.floor(rows.scrollTop / ROW) - 6), last = first + Math.ceil(rows.clientHeight / ROW) + 12;
    state.scroll = rows.scrollTop;
    space.innerHTML = state.order.slice(first, last).map((r, i) =>
      `<a class="row grid${first + i === state.chosen ? " chosen" : ""}" style="top:${(first + i) * ROW}px" href="#/feature/${columns.name[r]}">` +
      `${shown.map((column) => cell(column, r)).join("")}</a>`).join("");
  }
  function arrange(keep) {
    state.order = arranged(columns);
    if (!keep) [state.chosen, state.scroll] = [0, 0];
    space.style.height = `${state.order.length * ROW}px`;
    rows.scrollTop = state.scroll;
    view.querySelector("#count").textContent = `${state.order.length.toLocaleString("en")} of ${columns.feature.length.toLocaleString("en")} features`;
    for (const button of view.querySelectorAll("[data-sort]")) {
      const on = button.dataset.sort === state.sort;
      button.classList.toggle("on", on);
      button.textContent = COLUMNS.find((column) => column.key === button.dataset.sort).title + (on ? (state.down ? " \u2193" : " \u2191") : "");
    }
    draw();
  }
  function choose(step) {
    state.chosen = Math.min(Math.max(state.chosen + step, 0), state.order.length - 1);
    const top = state.chosen * ROW;
    if (top < rows.scrollTop) rows.scrollTop = top;
    if (top + ROW > rows.scrollTop + rows.clientHeight) rows.scrollTop = top + ROW - rows.clientHeight;
    draw();
  }
  rows.addEventListener("scroll", () => requestAnimationFrame(draw));
  view.querySelector(".head").addEventListener("click", ({ target }) => {
    const key = target.dataset.sort;
    if (!key) return;
    state.down = state.sort === key ? !state.down : Boolean(COLUMNS.find((column) => column.key === key).number);
    state.sort = key;
    arrange();
  });
  for (const event of ["input", "change"])
    view.querySelector(".filters").addEventListener(event, ({ target }) => { state[target.name] = target.value; arrange(); });
  view.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());
  arrange(true);
  tableKeys = { arrange, choose, open: () => { const r = state.order[state.chosen]; if (r !== undefined) visit(`#/feature/${columns.name[r]}`); } };
}
let tableKeys = null;
