// The map of a session: its layers × groups, coloured by who holds them, by their copies, or by the load of their layer.

import { $, make, set, hue, count, share } from "./lib.js";

let shape = "";     // of the table that stands
let cells = [];     // [layers][groups]
let at = [0, 0];    // the cell that the keyboard is at
let before = null;  // the last map and when it came
let now = null;
let loads = [];     // [holders] map from layer to the share of the time that its kernels took
let open = () => {}; // what is done with a cell that is chosen

// onOpen sets what is done with a session, layer and group that are chosen.
export function onOpen(f) { open = f; }

// draw shows a map that came at a time, in seconds.
export function draw(m, seconds) {
  set($("map-of"), "of session " + m.session.slice(0, 8) + (m.name ? " " + m.name : ""));
  if (m.error) return none(m.error);
  if (!before || before.map.session !== m.session) before = now = null;
  if (!now || seconds - now.seconds > 0.5) before = now;
  now = { map: m, seconds };
  loads = m.holders.map(h => loadOf(h));
  const groups = Math.max(0, ...m.layers.map(l => l.owner.length)), next = [m.session, m.layers.map(l => l.owner.length).join()].join(" ");
  if (next !== shape) build(m, groups);
  shape = next;
  paint();
  if (!performance.getEntriesByName("map").length) requestAnimationFrame(() => performance.mark("map")); // when the first one is seen
}

// none says why there is no map.
export function none(why) {
  shape = "";
  cells = [];
  $("map").removeAttribute("role");
  $("map").replaceChildren(make("caption", why));
  $("legend").replaceChildren();
  set($("map-note"), "");
}

function loadOf(holder) {
  const old = before?.map.holders.find(h => h.worker === holder.worker);
  if (!old) return null;
  const was = new Map(old.load.map(([layer, , nanos]) => [layer, nanos]));
  const spent = now.seconds - before.seconds;
  return new Map(holder.load.map(([layer, , nanos]) => [layer, (nanos - (was.get(layer) ?? 0)) / 1e9 / spent]));
}

function build(m, groups) {
  at = [0, 0];
  const head = make("tr");
  head.append(make("th", "layer", { scope: "col" }), ...Array.from({ length: groups }, (_, g) => make("th", "g" + g, { scope: "col" })));
  const thead = make("thead");
  thead.append(head);
  const body = make("tbody");
  cells = m.layers.map((layer, l) => {
    const tr = make("tr");
    tr.append(make("th", l, { scope: "row" }));
    const row = layer.owner.map((_, g) => {
      const td = make("td", "", { tabIndex: l || g ? -1 : 0 });
      td.dataset.at = l + " " + g;
      return td;
    });
    tr.append(...row);
    body.append(tr);
    return row;
  });
  $("map").replaceChildren(thead, body);
  $("map").setAttribute("role", "grid");
}

function paint() {
  const m = now.map, by = $("colour").value;
  const most = Math.max(1e-9, ...loads.flatMap(l => l ? [...l.values()] : []));
  m.layers.forEach((layer, l) => layer.owner.forEach((owner, g) => {
    const td = cells[l][g], copies = layer.copies[g], load = owner < 0 ? null : loads[owner]?.get(l) ?? null;
    const text = by === "copies" ? (owner < 0 ? "0" : copies + 1) : by === "load" ? share(load) : owner < 0 ? "–" : owner + 1 + "+".repeat(copies);
    set(td, text);
    td.classList.toggle("lacks", owner < 0 || copies < m.replicas);
    td.style.background = owner < 0 ? "" : by === "owner" ? hue(owner) : by === "load" ? heat(load / most) : copies < m.replicas ? "" : hue(copies);
    const part = layer.stripes ? `group ${Math.floor(g / layer.stripes)} stripe ${g % layer.stripes}` : `group ${g}`;
    const label = `layer ${l}, ${part}: ` + (owner < 0 ? "held by nobody" : m.holders[owner].worker + (copies ? ", and " + count(copies, "copy", "copies") : ""));
    if (td.title !== label) td.title = label;
  }));
  const lacking = m.layers.reduce((n, layer) => n + layer.owner.filter((o, g) => o < 0 || layer.copies[g] < m.replicas).length, 0);
  const shards = m.layers.reduce((n, layer) => n + layer.owner.length, 0);
  const wants = m.replicas ? ` A + is a copy: each group is to have ${m.replicas}.` : "";
  const sums = [...new Set(m.layers.map(layer => layer.arithmetic))].sort().join(" and ");
  set($("map-note"), `${count(shards, "shard")} at ${count(m.holders.length, "worker")}, in arithmetic ${sums}` +
    (lacking ? `; ${count(lacking, "shard lacks", "shards lack")} ${m.replicas ? "holders" : "a holder"}.` : ".") + wants);
  $("map-note").classList.toggle("bad", lacking > 0);
  legend(m);
}

function legend(m) {
  const names = m.holders.map(h => h.worker).join();
  if ($("legend").dataset.names === names) return;
  $("legend").dataset.names = names;
  $("legend").replaceChildren(...m.holders.map((h, i) => {
    const li = make("li"), b = make("b", i + 1);
    b.style.background = hue(i);
    li.append(b, " " + h.worker);
    return li;
  }));
}

// heat is the colour of a share of the most.
function heat(v) {
  return v > 0 ? `color-mix(in oklab, var(--heat) ${Math.round(10 + 35 * v)}%, var(--none))` : "";
}

$("colour").addEventListener("change", () => { if (now && shape) paint(); });

const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-8, 0], PageDown: [8, 0] };
$("map").addEventListener("keydown", e => {
  if (e.key === "Enter" || e.key === " ") {
    e.preventDefault();
    if (cells.length) open(now.map.session, ...at);
    return;
  }
  const to = e.key === "Home" ? [at[0], 0] : e.key === "End" ? [at[0], Infinity] : steps[e.key] && [at[0] + steps[e.key][0], at[1] + steps[e.key][1]];
  if (!to || !cells.length) return;
  e.preventDefault();
  go(to);
  cells[at[0]][at[1]].focus();
});

$("map").addEventListener("click", e => {
  const td = e.target.closest("td");
  if (!td) return;
  go(td.dataset.at.split(" ").map(Number));
  td.focus();
  open(now.map.session, ...at);
});

// go moves the keyboard's place.
function go([layer, group]) {
  cells[at[0]][at[1]].tabIndex = -1;
  const l = Math.min(Math.max(layer, 0), cells.length - 1);
  at = [l, Math.min(Math.max(group, 0), cells[l].length - 1)];
  cells[at[0]][at[1]].tabIndex = 0;
}
