"use strict";
// The data: packed texts (gzip of JSON in base64), inside this page or in files beside it that are loaded as scripts.
const overview = JSON.parse(document.getElementById("overview").textContent);
const waiting = new Map();
const loaded = new Map();

async function unpack(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// What a data file calls.
window.scopeline = { put: (name, text) => waiting.get(name)?.(text) };

function fetched(name) {
  const inside = document.getElementById(`data-${name}`);
  if (inside) return Promise.resolve(inside.textContent);
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    waiting.set(name, resolve);
    script.src = `data/${name}.js`;
    script.onload = () => script.remove();
    script.onerror = () => reject(new Error(`data/${name}.js is missing; keep index.html beside its folder data, or run dvc repro analyze`));
    document.head.append(script);
  });
}

function data(name) {
  if (!loaded.has(name)) loaded.set(name, fetched(name).then(unpack));
  return loaded.get(name);
}

// Explanations that stages.interpret has written beside this folder, of the same feature store. A page in a frame brings them: of
// one that is not there nothing comes, and nothing is said.
function explanations() {
  const place = overview.explanations;
  if (!place || location.protocol !== "file:") return Promise.resolve({});
  return new Promise((resolve) => {
    const frame = document.createElement("iframe");
    const done = (found) => { removeEventListener("message", heard); frame.remove(); resolve(found); };
    const heard = ({ source, data: said }) => {
      if (source === frame.contentWindow) done(said?.store === overview.store && typeof said.features === "object" ? said.features : {});
    };
    addEventListener("message", heard);
    frame.hidden = true;
    frame.onload = () => setTimeout(() => done({}), 300);
    frame.src = place;
    document.body.append(frame);
  });
}

// The columns of the table, with what follows from them.
async function table() {
  const columns = await data("table");
  if (!columns.row) {
    columns.row = new Map(columns.feature.map((feature, row) => [feature, row]));
    columns.name ??= columns.feature.map(String);
    columns.byName = new Map(columns.name.map((name, row) => [name, row]));
    columns.layer = columns.name.map((name) => (name.includes("/") ? Number(name.split("/")[0]) : null));
    columns.lower = columns.t.map((text) => text.toLowerCase());
    const text = (places) => places.slice(0, SHOWN).map((place) => columns.lower[place]).join("\n");
    columns.fireText = columns.fires.map(text);
    columns.words ??= columns.feature.map(() => []);
    columns.promoteText = columns.promotes.map(text);
    for (const [name, said] of Object.entries(await explanations())) {
      const row = columns.byName.get(name);
      if (row === undefined) continue;
      columns.explanation ??= columns.feature.map(() => null);
      columns.explanation[row] ??= [said.explanation, said.detection, said.fuzzing];
    }
    columns.explainText = (columns.explanation ?? []).map((e) => (e?.[0] ?? "").toLowerCase());
  }
  return columns;
}

// The page of a feature; texts are given by their place in `t`, those of tokens with the token's id in `ids`.
async function featurePage(feature) {
  const { features, t, ids } = await data(`chunk-${Math.floor(feature / overview.chunk)}`);
  return { ...features[feature], t, ids };
}
