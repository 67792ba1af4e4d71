// Small things to draw: escaped text, numbers, tokens, bars, a histogram.
const escapes = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escaped = (text) => String(text).replace(/[&<>"']/g, (c) => escapes[c]);

function number(value, digits = 3) {
  if (value === null || value === undefined) return "";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(digits - 1) : String(Number(value.toPrecision(digits)));
}

const percent = (share) => (share === 0 ? "0" : share < 1e-4 ? `${(100 * share).toExponential(1)} %` : `${Number((100 * share).toPrecision(3))} %`);
// White space that would not be seen: in chips all of it, in running text line ends.
const visible = (text) => text.replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5").replace(/ /g, "\u00b7");
const running = (text) => text.replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5");
const chip = (text) => `<span class="chip">${escaped(visible(text))}</span>`;
const chips = (tokens) => tokens.map(chip).join("");

// Tokens, effect, and a bar of its size.
function effects(pairs, tokens, down) {
  const most = Math.max(...pairs.map(([, value]) => Math.abs(value)), 1e-12);
  const cells = pairs.map(([token, value]) => {
    const bar = `<span class="bar-line${down ? " down" : ""}" style="width:${(100 * Math.abs(value)) / most}%"></span>`;
    return `${chip(tokens[token])}${bar}<span class="num">${number(value)}</span>`;
  });
  return `<div class="list">${cells.join("")}</div>`;
}

// Bars over bins of equal ratio; counts may span decades, so their root is drawn.
function histogram([low, ...counts], [first, ratio]) {
  const width = 360, height = 96, step = width / Math.max(counts.length, 1), most = Math.max(...counts, 1);
  const edge = (i) => first * ratio ** (low + i);
  const bars = counts.map((count, i) => {
    const tall = Math.sqrt(count / most) * height;
    const hint = `${number(edge(i))} to ${number(edge(i + 1))}: ${number(count)} tokens`;
    return `<rect class="bar" x="${i * step + 0.5}" y="${height - tall}" width="${Math.max(step - 1, 0.5)}" height="${tall}"/>` +
      `<rect class="hint" x="${i * step}" y="0" width="${step}" height="${height}"><title>${hint}</title></rect>`;
  });
  const marks = [0, counts.length / 2, counts.length].map((i, k) =>
    `<text class="tick" x="${i * step}" y="${height + 15}" text-anchor="${["start", "middle", "end"][k]}">${number(edge(i))}</text>`);
  return `<svg viewBox="0 0 ${width} ${height + 20}" role="img" aria-label="Tokens by activation">${bars.join("")}` +
    `<line class="axis" x1="0" x2="${width}" y1="${height}" y2="${height}"/>${marks.join("")}</svg>`;
}

// A context: tokens shaded by activation, what attention reads underlined.
function context([activation, peak, tokens, shares, document_, start, end, number_, position, sources], texts, largest) {
  const first = position - peak;
  const read = new Map(sources.map(([place, , value]) => [place - first, value]));
  const spans = tokens.map((token, i) => {
    const share = shares[i] / 1000, value = share * largest;
    const hint = `${visible(texts[token])}  ${number(value)}${read.has(i) ? `; read with ${number(read.get(i))}` : ""}`;
    const kind = `tok${i === peak ? " peak" : ""}${read.has(i) ? " read" : ""}`;
    const shade = share > 0 ? ` style="background:rgba(var(--hot),${(0.08 + 0.52 * share).toFixed(3)})"` : "";
    return `<span class="${kind}" title="${escaped(hint)}"${shade}>${escaped(running(texts[token]))}</span>`;
  });
  const from = sources.map(([place, token, value]) => `${chip(texts[token])}${place === position ? "itself" : `${position - place} back`}, ${number(value)}`);
  return `<div class="context"><div class="text">${spans.join("")}</div><div class="foot"><b>${number(activation)}</b>` +
    (from.length ? `<span>reads ${from.join("; ")}</span>` : "") +
    `<span>${escaped(texts[document_])}${start < 0 ? "" : `, characters ${start}\u2013${end}`}</span><span>context ${number_}, token ${position}</span></div></div>`;
}
