// What all parts of the pages use. All text of others goes in as text, never as markup.

export const $ = id => document.getElementById(id);

// make makes an element with a text and properties.
export function make(tag, text = "", properties = {}) {
  const e = document.createElement(tag);
  e.textContent = text;
  return Object.assign(e, properties);
}

// set changes an element's text if it is another, so that selections and announcements are left alone.
export function set(e, text) {
  text = String(text);
  if (e.textContent !== text) e.textContent = text;
}

// rows makes a table's body have a row for each item. Rows keep their elements as long as their key is there, and with them the focus.
// cells makes a row's cells, update(row, item) fills them. A row is a tr unless another tag is named.
export function rows(body, items, key, cells, update, tag = "tr") {
  const old = new Map([...body.children].map(tr => [tr.dataset.key, tr]));
  const all = items.map(item => {
    const id = key(item);
    let tr = old.get(id);
    if (!tr) {
      tr = make(tag);
      tr.dataset.key = id;
      tr.append(...cells(item));
    }
    old.delete(id);
    update(tr, item);
    return tr;
  });
  for (const tr of old.values()) tr.remove();
  all.forEach((tr, i) => { if (body.children[i] !== tr) body.insertBefore(tr, body.children[i] ?? null); });
}

const units = ["B", "KiB", "MiB", "GiB", "TiB"];
export function bytes(n) {
  let i = 0;
  for (; n >= 1024 && i < units.length - 1; i++) n /= 1024;
  return n.toFixed(i && n < 100 ? 1 : 0) + " " + units[i];
}

export const number = n => n.toLocaleString("en");
export const count = (n, one, more = one + "s") => number(n) + " " + (n === 1 ? one : more);
export const share = v => v === null || !isFinite(v) ? "–" : Math.round(100 * v) + "%";
export const time = t => new Date(t).toLocaleTimeString("en-GB");
export function seconds(s) {
  if (s === null || !isFinite(s)) return "–";
  return s < 1e-3 ? (s * 1e6).toFixed(0) + " µs" : s < 1 ? (s * 1e3).toFixed(1) + " ms" : s.toFixed(1) + " s";
}

// hue is the colour of the i-th of some workers.
export const hue = i => `oklch(var(--cell-light) var(--cell-colour) ${(i * 137.5) % 360})`;
