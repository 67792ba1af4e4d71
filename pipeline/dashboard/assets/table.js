// The table of features: sorted and filtered by index, and only the rows in sight are in the page.
const ROW = 34, HEAD = 36;
const SHOWN = 4; // tokens of a feature in a column; all that its page lists are searched
const shownChips = (columns, places) => chips(columns, places.slice(0, SHOWN));
const COLUMNS = [
  { key: "feature", title: "feature", width: "92px", least: 92, text: (c, r) => `<span>${escaped(c.name[r])}</span>` },
  { key: "fires", title: "fires on", least: 160, width: "minmax(160px,1.45fr)", sort: "fireText", text: (c, r) => `<span>${shownChips(c, c.fires[r])}</span>` },
  { key: "promotes", title: "promotes", least: 140, width: "minmax(140px,1.35fr)", sort: "promoteText", text: (c, r) => `<span${noise(c, r) ? ' class="noise" title="all tokens together are spread as noise would be: some stand here by chance"' : ""}>${shownChips(c, c.promotes[r])}</span>` },
  { key: "explanation", title: "explanation", least: 160, width: "minmax(160px,1.6fr)", sort: "explainText", text: (c, r) => `<span>${escaped(c.explanation[r]?.[0] ?? "")}</span>` },
  { key: "density", title: "density", width: "150px", least: 150, number: true, text: (c, r) => `<span class="num">${meter(c.density[r])}${percent(c.density[r])}</span>` },
  { key: "max", title: "maximum", width: "84px", least: 84, number: true },
  { key: "variety", title: "variety", width: "66px", least: 66, number: true, text: (c, r) => `<span class="num">${c.variety[r] === null ? "" : percent(c.variety[r])}</span>` },
  { key: "mean", title: "mean", width: "72px", least: 72, number: true },
  { key: "kurtosis", title: "logit kurtosis", width: "104px", least: 104, number: true },
  { key: "energy", title: "energy", width: "72px", least: 72, number: true, text: (c, r) => `<span class="num">${percent(c.energy[r])}</span>` },
];
// Whether a feature's direct effect on the logits looks like noise: no token stands out.
const NOISE = 1;
const noise = (columns, row) => columns.kurtosis[row] !== null && columns.kurtosis[row] < NOISE;
const hints = {
  fires: "tokens on which it is strongest", promotes: "next tokens whose logits it raises most", density: "share of the tokens on which it is active",
  max: "largest activation", variety: "share of different words at the peaks of its strongest contexts: low is one word, 100 % another word in each", mean: "mean activation when active", kurtosis: "excess kurtosis of its effect on the logits: high is a few tokens",
  energy: "its share of the squared length of all that the features write", feature: "number", explanation: "automatic explanation",
};
const statuses = { alive: "active here", "": "all", dense: "dense (above 10 %)", dead: "never active here" };

// What is shown: in the link where it differs from these.
const usual = { query: "", sort: "energy", down: true, status: "alive", layer: "", low: "", high: "", strong: "", varied: "" };
const state = { ...usual, order: [], chosen: 0, scroll: 0 };

function tableLink() {
  const order = state.sort === usual.sort && state.down ? "" : (state.down ? "-" : "") + state.sort;
  const parts = { q: state.query, sort: order, show: state.status === usual.status ? "" : state.status || "all", layer: state.layer, from: state.low, to: state.high, max: state.strong, variety: state.varied };
  const query = Object.entries(parts).filter(([, value]) => value !== "").map(([key, value]) => `${key}=${encodeURIComponent(value)}`).join("&");
  return `#/features${query ? `?${query}` : ""}`;
}

// The state that a link asks for; what it asks for in vain stays as usual.
function linked(query) {
  const asked = new URLSearchParams(query ?? ""), sort = (asked.get("sort") ?? "-energy").replace(/^-/, ""), show = asked.get("show") ?? usual.status;
  const known = COLUMNS.some((column) => column.key === sort), status = show === "all" ? "" : show;
  const amount = (key) => (Number.isFinite(Number(asked.get(key) ?? NaN)) ? asked.get(key) : "");
  return {
    query: asked.get("q") ?? "", sort: known ? sort : usual.sort, down: known ? (asked.get("sort") ?? "-").startsWith("-") : true,
    status: status in statuses ? status : usual.status, layer: amount("layer"), low: amount("from"), high: amount("to"), strong: amount("max"), varied: amount("variety"),
  };
}

// The density on a logarithmic scale from 1e-6 to 1.
const meter = (density) => `<i class="scale"><i class="meter" style="width:${density > 0 ? Math.max(3, 100 * (1 + Math.log10(density) / 6)) : 0}%"></i></i>`;

// By place of a text, how it fits a query: 2 it is it, 1 it contains it, 0 neither. Marks of the page stand for their characters.
function fits(columns, query) {
  const needles = [...new Set([query, meant(query)].map((text) => text.toLowerCase()))];
  return columns.lower.map((text) => (needles.some((n) => text === n || text.trim() === n) ? 2 : needles.some((n) => text.includes(n)) ? 1 : 0));
}

// Rows that pass the filters, in the order of the sort, missing values last; of a search those with the very token first.
function arranged(columns) {
  const query = state.query, low = Number(state.low) / 100, high = state.high === "" ? Infinity : Number(state.high) / 100;
  const texts = query && fits(columns, query), asked = query.toLowerCase().trim();
  const fit = (r) => {
    const best = (places) => places.reduce((most, place) => Math.max(most, texts[place]), 0);
    const degrees = [[...columns.fires[r], ...columns.words[r]], columns.promotes[r], columns.suppresses[r]].map(best), very = degrees.indexOf(2);
    return very >= 0 ? 4 - very : Math.max(...degrees) || (columns.explainText[r] ?? "").includes(asked) ? 1 : 0;
  };
  const filtered = (r) => {
    const density = columns.density[r];
    if (state.status === "alive" && !(density > 0)) return false;
    if (state.status === "dead" && density > 0) return false;
    if (state.status === "dense" && !(density > 0.1)) return false;
    if (state.layer !== "" && columns.layer[r] !== Number(state.layer)) return false;
    if (state.strong !== "" && !(columns.max[r] >= Number(state.strong))) return false;
    if (state.varied !== "" && !((columns.variety?.[r] ?? -1) >= Number(state.varied) / 100)) return false;
    return density >= low && density <= high;
  };
  const found = columns.feature.map((_, r) => (query ? fit(r) : 1));
  const rows = found.flatMap((fitting, r) => (fitting && filtered(r) ? [r] : []));
  state.hidden = query ? found.filter((fitting) => fitting).length - rows.length : 0;
  const key = columns[COLUMNS.find((column) => column.key === state.sort).sort ?? state.sort] ?? columns.energy, sign = state.down ? -1 : 1;
  rows.sort((a, b) => {
    const x = key[a], y = key[b];
    if (found[a] !== found[b]) return found[b] - found[a];
    if (x === y) return a - b;
    if (x === null || x === "") return 1;
    if (y === null || y === "") return -1;
    return x < y ? -sign : sign;
  });
  const named = columns.byName.get(asked); // a number names a feature, whatever the filters say
  return named === undefined ? rows : [named, ...rows.filter((r) => r !== named)];
}

function filters(columns) {
  const layers = [...new Set(columns.layer)].filter((layer) => layer !== null);
  const option = (value, text, now) => `<option value="${value}"${String(value) === now ? " selected" : ""}>${text}</option>`;
  const layer = layers.length ? `<label>layer <select name="layer">${option("", "all", state.layer)}${layers.map((l) => option(l, l, state.layer)).join("")}</select></label>` : "";
  const varied = columns.variety?.some((value) => value !== null) ? `
    <label title="${hints.variety}">variety from <input name="varied" type="number" min="0" max="100" step="any" value="${escaped(state.varied)}"> %</label>` : "";
  return `<form class="filters"><span id="count"></span>
    <label>show <select name="status">${Object.entries(statuses).map(([value, text]) => option(value, text, state.status)).join("")}</select></label>${layer}
    <label>density from <input name="low" type="number" min="0" max="100" step="any" value="${escaped(state.low)}"> %</label>
    <label>to <input name="high" type="number" min="0" max="100" step="any" value="${escaped(state.high)}"> %</label>
    <label>maximum from <input name="strong" type="number" step="any" value="${escaped(state.strong)}"></label>${varied}
    <a id="reset" href="#/features">reset</a></form><p id="searched" class="faint"></p>`;
}

// Columns that have something in them.
const filled = (columns) => COLUMNS.filter(({ key }) => columns[key]?.some((value) => value !== null && value.length !== 0));

// What a search looked at, and what the filters keep back of it.
function searched(columns) {
  if (!state.query) return "";
  const where = filled(columns).map((column) => column.key).filter((key) => ["fires", "promotes", "explanation"].includes(key));
  const titles = where.map((key) => `, \u201c${COLUMNS.find((column) => column.key === key).title}\u201d`).join("");
  const suppressed = columns.suppresses.some((places) => places.length) ? ", suppressed tokens" : "";
  const text = `Searched: feature numbers${titles}${suppressed}, with all tokens that a feature\u2019s page lists (the table shows ${SHOWN} in a column), and the words that they are parts of; the very token comes first.`;
  const hidden = state.hidden > 0 ? ` The filters hide ${state.hidden.toLocaleString("en")} more.` : "";
  return text + hidden;
}

const nothing = () => (state.query ? `No feature here has \u201c${escaped(visible(state.query))}\u201d.` : "No feature passes the filters.");

async function showTable(view, latest) {
  const columns = await table();
  if (!latest()) return;
  const shown = filled(columns);
  const head = shown.map(({ key, title, number: right }) =>
    `<button type="button" data-sort="${key}" title="${hints[key]}" class="${right ? "num" : ""}">${title}</button>`);
  view.innerHTML = `${filters(columns)}<div class="rows"><div class="grid head">${head.join("")}</div>
    <div class="space" tabindex="0" role="listbox" aria-label="Features"></div></div>`;
  view.style.setProperty("--columns", shown.map((column) => column.width).join(" "));
  view.style.setProperty("--least", `${shown.reduce((sum, column) => sum + column.least + 14, 10)}px`);
  const rows = view.querySelector(".rows"), space = view.querySelector(".space");
  const cell = (column, r) => column.text?.(columns, r) ?? `<span class="num">${number(columns[column.key][r])}</span>`;

  function draw() {
    const first = Math.max(0, Math.floor(rows.scrollTop / ROW) - 6), last = first + Math.ceil(rows.clientHeight / ROW) + 12;
    state.scroll = rows.scrollTop;
    space.innerHTML = !state.order.length ? `<p class="nothing">${nothing()}</p>` : state.order.slice(first, last).map((r, i) => {
      const chosen = first + i === state.chosen;
      return `<a class="row grid${chosen ? " chosen" : ""}" id="row-${r}" role="option" aria-selected="${chosen}" tabindex="-1" ` +
        `style="top:${(first + i) * ROW}px" href="${escaped(featureLink(columns.name[r]))}">${shown.map((column) => cell(column, r)).join("")}</a>`;
    }).join("");
    space.setAttribute("aria-activedescendant", state.order.length ? `row-${state.order[state.chosen]}` : "");
  }
  function arrange(keep) {
    state.order = arranged(columns);
    if (!keep) [state.chosen, state.scroll] = [0, 0];
    space.style.height = `${Math.max(state.order.length, 2) * ROW}px`;
    rows.scrollTop = state.scroll;
    view.querySelector("#count").textContent = `${state.order.length.toLocaleString("en")} of ${columns.feature.length.toLocaleString("en")} features`;
    view.querySelector("#searched").innerHTML = searched(columns);
    view.querySelector("#reset").hidden = tableLink() === "#/features";
    for (const button of view.querySelectorAll("[data-sort]")) {
      const on = button.dataset.sort === state.sort;
      button.classList.toggle("on", on);
      button.textContent = COLUMNS.find((column) => column.key === button.dataset.sort).title + (on ? (state.down ? " \u2193" : " \u2191") : "");
    }
    draw();
  }
  function changed() {
    arrange();
    follow();
  }
  function choose(step) {
    state.chosen = Math.max(Math.min(state.chosen + step, state.order.length - 1), 0);
    const top = state.chosen * ROW;
    if (top < rows.scrollTop) rows.scrollTop = top;
    if (top + ROW + HEAD > rows.scrollTop + rows.clientHeight) rows.scrollTop = top + ROW + HEAD - rows.clientHeight;
    draw();
  }
  rows.addEventListener("scroll", () => requestAnimationFrame(draw));
  view.querySelector(".head").addEventListener("click", ({ target }) => {
    const key = target.dataset.sort;
    if (!key) return;
    state.down = state.sort === key ? !state.down : Boolean(COLUMNS.find((column) => column.key === key).number);
    state.sort = key;
    changed();
  });
  for (const event of ["input", "change"]) {
    view.querySelector(".filters").addEventListener(event, ({ target }) => {
      if (state[target.name] === target.value) return; // the `change` at blur: the row that is being clicked must stay
      state[target.name] = target.value;
      changed();
    });
  }
  view.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());
  arrange(true);
  tableKeys = { arrange, choose, open: () => { const r = state.order[state.chosen]; if (r !== undefined) visit(featureLink(columns.name[r])); } };
}
let tableKeys = null;
