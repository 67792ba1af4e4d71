// The page of one feature.
const neighbour = (columns, pairs) => {
  const lines = pairs.map(([feature, similarity]) => {
    const row = columns.row.get(feature);
    const name = row === undefined ? featureName(feature) : columns.name[row];
    const what = row === undefined ? '<span class="faint">not in this page</span>' : `<span>${shownChips(columns, columns.fires[row])}</span>`;
    const link = row === undefined ? `<span>${escaped(name)}</span>` : `<a href="${escaped(featureLink(name))}">${escaped(name)}</a>`;
    return `${link}${what}<span class="num">${number(similarity)}</span>`;
  });
  return lines.length ? `<div class="list">${lines.join("")}</div>` : '<p class="faint">none</p>';
};

// The name of a feature from its number: with layers, LAYER/FEATURE.
function featureName(feature) {
  const width = overview.shape.at(-1);
  return overview.shape.length > 1 ? `${Math.floor(feature / width)}/${feature % width}` : String(feature);
}

// Which features there are.
function range() {
  const [last, layers] = [overview.shape.at(-1) - 1, overview.shape.length > 1 ? overview.shape[0] - 1 : null];
  const features = `0 to ${last.toLocaleString("en")}`;
  return layers === null ? `Features go from ${features}.` : `Features are named LAYER/FEATURE, layers from 0 to ${layers}, features from ${features}.`;
}

function written(norms) {
  if (norms.length < 2) return "";
  const most = Math.max(...norms, 1e-12);
  const lines = norms.map((norm, i) => `<span>${escaped(overview.hooks[i])}</span><span class="bar-line" style="width:${(100 * norm) / most}%"></span><span class="num">${number(norm)}</span>`);
  return `<section class="card"><h2>Where it writes</h2><p>decoder norm at each hook point</p><div class="list">${lines.join("")}</div></section>`;
}

function explained(entry) {
  if (!entry?.[0]) return "";
  const score = (name, value) => (value === null ? "" : `<span class="tag">${name} ${number(value)}</span>`);
  return `<p>${escaped(entry[0])}${score("detection", entry[1])}${score("fuzzing", entry[2])}</p>`;
}

// What the marks in the contexts mean.
function legend(bands) {
  const reads = Object.values(bands).some((contexts) => contexts.some((entry) => entry[9].length));
  return `<p class="legend"><span><i class="ramp"></i>activation, from above 0 to the feature's maximum</span>
    <span><i class="tok peak">a</i> the token that the context is chosen for</span>${reads ? '<span><i class="tok read">a</i> a token that it reads</span>' : ""}
    <span>\u21b5 line end, \u21e5 tab, \u00b7 space</span></p>`;
}

async function showFeature(view, name, latest) {
  const columns = await table();
  if (!latest()) return;
  const row = columns.byName.get(name);
  if (row === undefined) {
    const where = overview.part ? ` This page has ${overview.part} only; the whole dashboard is data/dashboard/index.html.` : "";
    view.innerHTML = `<h1>No feature ${escaped(name)}</h1><p>${range()}${escaped(where)} <a href="#/features">All features</a></p>`;
    return;
  }
  const feature = columns.feature[row], page = await featurePage(feature), largest = columns.max[row];
  if (!latest()) return;
  if (!state.order.length) state.order = arranged(columns);
  // Its neighbours in the table; of a feature that is not in the table now, those by number.
  const inTable = state.order.indexOf(row), order = inTable < 0 ? columns.feature.map((_, r) => r) : state.order, place = inTable < 0 ? row : inTable;
  if (inTable >= 0) state.chosen = place;
  const step = (by, text, key) => {
    const next = order[place + by], hint = `${by < 0 ? "previous" : "next"} ${inTable < 0 ? "by number (it is not in the table now)" : "in the table"} (${key})`;
    return next === undefined ? "" : `<a class="tag" data-step="${by}" href="${escaped(featureLink(columns.name[next]))}" title="${hint}">${text} ${escaped(columns.name[next])}</a>`;
  };
  const bands = Object.entries(page.bands).map(([band, contexts]) => {
    const title = band === "top" ? "Strongest contexts" : `${escaped(band.replace("-", "\u2013"))} <small>of its activations, drawn at random</small>`;
    return `<h2>${title}</h2>${contexts.map((entry) => context(entry, page, largest)).join("")}`;
  });
  const stat = (title, value) => `<div>${title}<b>${value}</b></div>`;
  const density = columns.density[row], tags = density === 0 ? '<span class="tag">never active here</span>' : density > 0.1 ? '<span class="tag">dense</span>' : "";
  const noisy = noise(columns, row) ? `<p class="warning">All tokens together are spread as noise would be (excess kurtosis ${number(columns.kurtosis[row])}; of noise 0), so that some of these stand here by chance. The direct way to the logits, which this is, says little of such a feature: what it does through later blocks <code>stages.inspect --steer</code> and <code>attribute</code> in a notebook show.</p>` : "";
  const logits = page.promoted.length ? `<p>what an activation of 1 adds directly, past the blocks behind it${overview.logit_softcap ? " (before the soft cap of the logits)" : ""}, the final norm's scale left out</p>${noisy}
    <h3>promotes</h3>${effects(page.promoted, page, false)}<h3>suppresses</h3>${effects(page.suppressed, page, true)}` :
    `<p>none: what it writes (${overview.hooks.map(escaped).join(", ")}) is not itself added to the residual stream, so it has no direct effect on the logits</p>`;
  view.innerHTML = `<div class="title"><h1>Feature ${escaped(name)}${tags}</h1><span class="step">${step(-1, "\u2190", "k")}${step(1, "\u2192", "j")}</span></div>
    ${explained(columns.explanation?.[row])}${keeper(name)}
    <div class="stats">${stat("density", percent(density))}${stat("active tokens", number(page.active))}${stat("maximum", number(largest))}${columns.variety[row] === null ? "" : stat("variety", percent(columns.variety[row]))}
    ${stat("mean when active", number(columns.mean[row]))}${page.threshold === null ? "" : stat("threshold", number(page.threshold))}
    ${stat("energy", percent(columns.energy[row]))}${columns.kurtosis[row] === null ? "" : stat("logit kurtosis", number(columns.kurtosis[row]))}
    ${stat("decoder norm", number(columns.norm[row]))}</div>
    <div class="columns"><div class="contexts">${bands.length ? legend(page.bands) : ""}${bands.join("") || '<p class="faint">It was never active on the tokens looked at.</p>'}</div>
    <div class="side"><section class="card"><h2>Activations</h2><p>tokens by activation; heights are square roots</p>${histogram(page.histogram, overview.edges, page.threshold)}</section>
    ${written(page.norms)}<section class="card"><h2>Logits</h2>${logits}</section>
    <section class="card"><h2>Similar decoder rows</h2><p>cosine similarity</p>${neighbour(columns, page.decoder)}</section>
    <section class="card"><h2>Active together</h2><p>Jaccard index over ${number(overview.coactivation_tokens)} tokens</p>${neighbour(columns, page.coactive)}</section></div></div>`;
  keep(view, name);
}
