// Small things to draw: escaped text, numbers, tokens, bars, a histogram.
const escapes = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escaped = (text) => String(text).replace(/[&<>"']/g, (c) => escapes[c]);

function number(value, digits = 3) {
  if (value === null || value === undefined) return "";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(digits - 1) : String(Number(value.toPrecision(digits)));
}

// Digits rather than exponents, so that a column can be read down.
function percent(share) {
  const value = 100 * share;
  return value === 0 ? "0" : value < 1e-4 ? "< 0.0001 %" : `${Number(value.toPrecision(value < 0.1 ? 2 : 3))} %`;
}

// Characters that would not be seen: line ends, tabs, control characters and spaces of no or odd width; in chips all spaces.
const unseen = /[\u0000-\u001f\u007f-\u00a0\u00ad\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff]/g;
const marks = { "\n": "\u21b5", "\t": "\u21e5" };
const coded = (c) => (c < "\u0100" ? `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}` : `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
const running = (text) => text.replace(unseen, (c) => marks[c] ?? coded(c));
const visible = (text) => running(text).replace(/ /g, "\u00b7");
// The same read backwards: what somebody means who types what a chip shows.
const meant = (text) => text.replace(/\u00b7/g, " ").replace(/\u21b5/g, "\n").replace(/\u21e5/g, "\t")
  .replace(/\\x([0-9a-f]{2})|\\u([0-9a-f]{4})/gi, (_, x, u) => String.fromCharCode(parseInt(x ?? u, 16)));

// The link to a feature.
const featureLink = (name) => `#/feature/${encodeURIComponent(name).replaceAll("%2F", "/")}`;

// A text in a frame, from { t, ids }: a token says its id.
function chip({ t, ids }, place) {
  const id = ids[place], shown = t[place] === "" && id !== null ? `#${id}` : visible(t[place]);
  return `<span class="chip"${id === null ? "" : ` title="token ${id}"`}>${escaped(shown)}</span>`;
}
const chips = (texts, places) => places.map((place) => chip(texts, place)).join("");

// Tokens, effect, and a bar of its size.
function effects(pairs, texts, down) {
  const most = Math.max(...pairs.map(([, value]) => Math.abs(value)), 1e-12);
  const cells = pairs.map(([place, value]) => {
    const bar = `<span class="bar-line${down ? " down" : ""}" style="width:${(100 * Math.abs(value)) / most}%"></span>`;
    return `${chip(texts, place)}${bar}<span class="num">${number(value)}</span>`;
  });
  return `<div class="list">${cells.join("")}</div>`;
}

// Round numbers between two on a logarithmic scale: 1, 2 and 5 times powers of ten, or fewer of them.
function ticks(low, high) {
  const powers = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) powers.push(power);
  for (const factors of [[1, 2, 5], [1, 3], [1]]) {
    const found = powers.flatMap((power) => factors.map((factor) => Number(`${factor}e${power}`))).filter((value) => value >= low && value <= high);
    if (found.length <= 7) return found.length > 1 ? found : [low, high];
  }
  return [low, high];
}

// Bars over bins of equal ratio; counts may span decades, so their root is drawn. A gate's threshold is marked.
function histogram([low, ...counts], [first, ratio], threshold) {
  if (!counts.length) return '<p class="faint">none</p>';
  const width = 366, top = 18, height = 96, bottom = top + height, step = width / counts.length, most = Math.max(...counts);
  const edge = (i) => first * ratio ** (low + i), place = (value) => (Math.log(value / edge(0)) / Math.log(ratio)) * step;
  const bars = counts.map((count, i) => {
    const tall = Math.sqrt(count / most) * height;
    const hint = `${number(edge(i))} to ${number(edge(i + 1))}: ${number(count)} tokens`;
    return `<rect class="bar" x="${i * step + 0.5}" y="${bottom - tall}" width="${Math.max(step - 1, 0.5)}" height="${tall}"/>` +
      `<rect class="hint" x="${i * step}" y="${top}" width="${step}" height="${height}"><title>${hint}</title></rect>`;
  });
  const anchor = (x) => (x < 16 ? "start" : x > width - 16 ? "end" : "middle");
  const scale = ticks(edge(0), edge(counts.length)).map((value) => [value, place(value)]).map(([value, x]) =>
    `<line class="axis" x1="${x}" x2="${x}" y1="${bottom}" y2="${bottom + 4}"/><text class="tick" x="${x}" y="${bottom + 16}" text-anchor="${anchor(x)}">${number(value)}</text>`);
  const at = threshold > 0 ? place(threshold) : -1, marked = at >= 0 && at <= width, left = marked && at < width / 2;
  const mark = marked ? `<line class="mark" x1="${at}" x2="${at}" y1="4" y2="${bottom}"/>` +
    `<text class="marked" x="${at + (left ? 4 : -4)}" y="11" text-anchor="${left ? "start" : "end"}">threshold ${number(threshold)}</text>` : "";
  const largest = `<text class="tick" x="${left ? width : 0}" y="11" text-anchor="${left ? "end" : "start"}">highest bar: ${number(most)} tokens</text>`;
  return `<svg class="histogram" viewBox="0 0 ${width} ${bottom + 36}" role="img" aria-label="Tokens by activation">${bars.join("")}${mark}${largest}` +
    `<line class="axis" x1="0" x2="${width}" y1="${bottom}" y2="${bottom}"/>${scale.join("")}` +
    `<text class="label" x="${width / 2}" y="${bottom + 32}">activation (log scale)</text></svg>`;
}

// A context: tokens shaded by activation, what attention reads underlined.
function context([activation, peak, tokens, values, document_, start, end, number_, position, sources], texts, largest) {
  const first = position - peak, { t, ids } = texts;
  const read = new Map(sources.map(([place, , value]) => [place - first, value]));
  const spans = tokens.map((place, i) => {
    const value = values[i], share = value / (largest || 1);
    const hint = `${visible(t[place])}  ${number(value)}${read.has(i) ? `; read with ${number(read.get(i))}` : ""}; token ${ids[place]}`;
    const kind = `tok${i === peak ? " peak" : ""}${read.has(i) ? " read" : ""}`;
    const shade = value > 0 ? ` style="background:rgba(var(--hot),${(0.08 + 0.52 * share).toFixed(3)})"` : "";
    return `<span class="${kind}" title="${escaped(hint)}"${shade}>${escaped(running(t[place]))}</span>`;
  });
  const from = sources.map(([at, place, value]) => `${chip(texts, place)}${at === position ? "itself" : `${position - at} back`}, ${number(value)}`);
  return `<div class="context"><div class="text">${spans.join("")}</div><div class="foot"><b>${number(activation)}</b>` +
    (from.length ? `<span>reads ${from.join("; ")}</span>` : "") +
    `<span>${escaped(t[document_])}${start < 0 ? "" : `, characters ${start}\u2013${end}`}</span><span>context ${number_}, token ${position}</span></div></div>`;
}
