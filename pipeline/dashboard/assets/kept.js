// Features that somebody wants to come back to, with a note each: in this browser, and as a file to pass on.
const KEPT = `scopeline-kept:${overview.store ?? overview.about}`;
const MOST_NOTE = 2000;
let kept = {};
try { kept = clean(JSON.parse(localStorage.getItem(KEPT) ?? "{}")); } catch { /* no storage, or not ours */ }

// {name: note} of what may be anything.
function clean(found) {
  const pairs = found && typeof found === "object" && !Array.isArray(found) ? Object.entries(found) : [];
  return Object.fromEntries(pairs.filter(([, note]) => typeof note === "string").map(([name, note]) => [name, note.slice(0, MOST_NOTE)]));
}

function store() {
  try { localStorage.setItem(KEPT, JSON.stringify(kept)); } catch { /* it holds until the page is closed; a file keeps it */ }
  counted();
}

function counted() {
  const n = Object.keys(kept).length;
  document.querySelector('[data-tab="kept"]').textContent = n ? `Kept (${n})` : "Kept";
}

const has = (name) => Object.hasOwn(kept, name);
const keeper = (name) => `<div class="keeper"><button type="button" id="keep" aria-pressed="${has(name)}">${has(name) ? "\u2605 kept" : "\u2606 keep"}</button>
  <textarea id="note" rows="1" maxlength="${MOST_NOTE}" placeholder="A note; it keeps the feature" aria-label="Note">${escaped(has(name) ? kept[name] : "")}</textarea></div>`;

function keep(place, name) {
  const button = place.querySelector("#keep"), note = place.querySelector("#note");
  const shown = () => {
    button.setAttribute("aria-pressed", has(name));
    button.textContent = has(name) ? "\u2605 kept" : "\u2606 keep";
    store();
  };
  button.addEventListener("click", () => {
    if (has(name)) delete kept[name];
    else kept[name] = note.value;
    shown();
  });
  note.addEventListener("input", () => {
    kept[name] = note.value;
    shown();
  });
}

async function showKept(place, latest) {
  const columns = await table();
  if (!latest()) return;
  const lines = Object.entries(kept).map(([name, note]) => {
    const row = columns.byName.get(name);
    const what = row === undefined ? '<span class="faint">not in this page</span>' : shownChips(columns, columns.fires[row]);
    return `<tr><td><a href="${escaped(featureLink(name))}">${escaped(name)}</a></td><td>${what}</td><td>${escaped(note)}</td></tr>`;
  });
  place.innerHTML = `<h1>Kept features</h1><p>They are kept in this browser, for this dictionary; a file carries them elsewhere.</p>
    <p><button type="button" id="export"${lines.length ? "" : " disabled"}>Save as a file</button>
    <label class="file">Add from a file <input type="file" id="import" accept=".json,application/json"></label> <span id="said" role="status"></span></p>
    ${lines.length ? `<section class="card"><table class="compare kept"><thead><tr><th>feature</th><th>fires on</th><th>note</th></tr></thead><tbody>${lines.join("")}</tbody></table></section>` :
      '<p class="faint">None yet: \u2606 on a feature\u2019s page keeps it.</p>'}`;
  place.querySelector("#export").addEventListener("click", () => {
    const content = JSON.stringify({ dictionary: overview.about, store: overview.store ?? null, features: kept }, null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type: "application/json" }));
    link.download = "kept-features.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  place.querySelector("#import").addEventListener("change", async ({ target }) => {
    let said;
    try {
      const found = JSON.parse(await target.files[0].text()), features = clean(found?.features);
      const known = Object.entries(features).filter(([name]) => columns.byName.has(name)), others = Object.keys(features).length - known.length;
      kept = { ...kept, ...Object.fromEntries(known) };
      store();
      said = `${known.length} added${others ? `, ${others} are not of this page` : ""}${found?.store && found.store !== overview.store ? "; the file is of another feature store" : ""}.`;
      await showKept(place, latest);
    } catch {
      said = "This is no file of kept features; wanted one that \u201cSave as a file\u201d has made.";
    }
    if (latest()) place.querySelector("#said").textContent = said;
  });
}
counted();
