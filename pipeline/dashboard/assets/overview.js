// The overview.
function showOverview(view) {
  const cell = (value) => `<td class="num">${number(value, 4)}</td>`;
  const rows = overview.metrics.map(([name, about, own, interval, pca, mean, zero]) =>
    `<tr><td>${escaped(name)}<small>${escaped(about)}</small></td><td class="num own">${number(own, 4)}` +
    (interval ? `<small>95 %: ${number(interval[0], 4)} \u2013 ${number(interval[1], 4)}</small>` : "") +
    `</td>${cell(pca)}${cell(mean)}${cell(zero)}</tr>`);
  const shown = (value) => (typeof value === "string" ? escaped(value) : number(value, 4));
  const list = (title, pairs) => (pairs?.length ? `<section class="card spaced"><h2>${title}</h2><dl>${pairs.map(([name, value]) =>
    `<div><dt>${escaped(name)}</dt><dd>${shown(value)}</dd></div>`).join("")}</dl></section>` : "");
  const hooks = overview.hook_table && `<section class="card spaced"><h2>At each hook point</h2><div class="wide"><table class="compare"><thead><tr><th></th>
    ${overview.hook_table.columns.map((name) => `<th>${escaped(name)}</th>`).join("")}</tr></thead><tbody>
    ${overview.hook_table.rows.map(([hook, ...values]) => `<tr><td>${escaped(hook)}</td>${values.map(cell).join("")}</tr>`).join("")}</tbody></table></div></section>`;
  const part = overview.part ? ` This page has ${escaped(overview.part)}, those of the largest energy: together ${percent(overview.part_energy)} of it.` : "";
  const massive = overview.massive ? ` Held out, ${escaped(overview.massive)}. FVU, L0 and dead share are of the others.` : "";
  view.innerHTML = `<h1>${escaped(overview.about)}</h1>
    <p>Metrics are of held-out text; features were looked at on ${escaped(overview.seen)}.${massive}${part}
    <a href="#/features">Look at the features</a>.</p>
    <section class="card"><h2>How good it is</h2><div class="wide"><table class="compare"><thead><tr><th></th><th>this dictionary</th>
    <th>PCA of rank ${number(overview.pca_rank)}</th><th>mean</th><th>zero</th></tr></thead><tbody>${rows.join("")}</tbody></table></div></section>
    ${hooks ?? ""}${list("Figures", overview.figures)}${list("Training", overview.training)}
    <div class="cards">${overview.charts.join("")}</div>`;
}
