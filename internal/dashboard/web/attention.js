// Where queries look: each query head of a group is a row over the same keys and values, live while a model generates.

import { $, make, set, rows, count } from "./lib.js";

let source = null; // { session } or { job }
let events = null; // while a session is watched
let asked = 0;     // counts what was asked of jobs, so that a late answer is not shown
let last = null;   // what is shown
let inspected = null; // a position, or null for the query's own

const ten = 10_000; // weights are in ten-thousandths
const percent = w => (w / 100).toFixed(w < 1000 && w > 0 ? 1 : 0) + "%";

// token makes what can not be seen in a token visible.
const token = t => t ? "“" + t.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥") + "”" : "";
const place = (a, position) => [position, token(position === a.position ? a.token || a.tokens[position - a.start] : a.tokens[position - a.start])].filter(x => x !== "").join(" ");

// watch looks at a layer and group of a session.
export function watch(session, layer, group) {
  if (!session) return;
  source = { session };
  $("look-layer").value = layer;
  $("look-group").value = group;
  start();
}

// explain looks at a job.
export async function explain(job, name) {
  stop();
  source = { job };
  last = null;
  const said = await ask("job/problems?job=" + encodeURIComponent(job));
  if (!said) return;
  source.name = name;
  source.problems = said;
  $("look-problem").replaceChildren(...said.map(p => make("option", p.prefix || "attention", { value: p.prefix })));
  choose();
  start();
}

// choose fits the controls to the problem that is chosen.
function choose() {
  const p = problem();
  $("look-group").max = p.groups - 1;
  Object.assign($("look-query"), { min: p.from, max: p.from + p.queries - 1, value: p.from + p.queries - 1 });
}

const problem = () => source.problems[$("look-problem").selectedIndex];

async function ask(url) {
  const mine = ++asked;
  try {
    const answer = await fetch(url), text = await answer.text();
    if (mine !== asked) return null;
    if (answer.ok) return JSON.parse(text);
    note(text, true);
  } catch {
    note("not connected", true);
  }
  return null;
}

async function start() {
  stop();
  if (!source) return;
  const job = Boolean(source.job);
  $("look-of-session").hidden = job;
  $("look-of-job").hidden = !job;
  $("look").hidden = false;
  const group = Number($("look-group").value), positions = $("look-positions").value;
  if (job) {
    set($("attention-of"), `of job ${source.name}, group ${group}`);
    const query = new URLSearchParams({ job: source.job, problem: problem().prefix, group, query: $("look-query").value, positions });
    const a = await ask("job/attention?" + query);
    if (a) show(a);
    return;
  }
  const layer = Number($("look-layer").value);
  set($("attention-of"), `of session ${source.session.slice(0, 8)}, layer ${layer}, group ${group}`);
  note("Waiting for the next query of this layer.");
  $("heads").replaceChildren();
  last = null;
  events = new EventSource("attention?" + new URLSearchParams({ session: source.session, layer, group, positions }));
  events.onmessage = e => show(JSON.parse(e.data));
  events.addEventListener("failed", e => { stop(); note(JSON.parse(e.data).error, true); });
  events.onerror = () => note("not connected", true);
  $("look-pause").textContent = "pause";
}

function stop() {
  events?.close();
  events = null;
  asked++;
  $("look-pause").textContent = "watch";
}

function note(text, bad = false) {
  set($("attention-note"), text);
  $("attention-note").classList.toggle("bad", bad);
}

function show(a) {
  last = a;
  const end = a.start + a.weights[0].length - 1;
  note(`The query at ${place(a, a.position)} looks at positions ${a.start} to ${end}: ${count(a.weights.length, "query head")}, one library of keys and values.`);
  rows($("heads"), a.weights.map((weights, h) => ({ weights, h })), x => a.first_head + x.h, x => {
    const canvas = make("canvas", "", { height: 22 });
    canvas.setAttribute("role", "img");
    return [make("h3", "head " + (a.first_head + x.h)), canvas, make("p", "", { className: "matches" })];
  }, (li, x) => {
    const text = matches(a, x.h);
    li.children[1].setAttribute("aria-label", `weights of head ${a.first_head + x.h}: ${text}`);
    set(li.children[2], text);
  }, "li");
  paintAll();
  Object.assign($("look-at"), { min: a.start, max: end });
  if (inspected === null || inspected < a.start || inspected > end) $("look-at").value = Math.min(a.position, end);
  inspect();
}

// matches are the positions that a head gives most, in words.
function matches(a, h) {
  const best = a.weights[h].map((w, i) => [w, a.start + i]).filter(([w]) => w > 0).sort((x, y) => y[0] - x[0] || x[1] - y[1]).slice(0, 4);
  const said = best.map(([w, at]) => percent(w) + " " + place(a, at));
  if (a.before[h]) said.push(percent(a.before[h]) + " before " + a.start);
  if (a.sink?.[h]) said.push(percent(a.sink[h]) + " its sink");
  return said.join(" · ") || "nothing";
}

function paintAll() {
  if (last) [...$("heads").children].forEach((li, h) => paint(li.children[1], last.weights[h]));
}

// paint draws weights as a row: where several positions share a column, the largest.
function paint(canvas, weights) {
  const width = canvas.width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio)), n = weights.length;
  const draw = canvas.getContext("2d"), colour = getComputedStyle(document.documentElement).getPropertyValue("--heat");
  draw.clearRect(0, 0, width, canvas.height);
  draw.fillStyle = colour;
  const columns = Math.min(width, n);
  for (let c = 0; c < columns; c++) {
    let most = 0;
    for (let i = Math.floor(c * n / columns); i < (c + 1) * n / columns; i++) most = Math.max(most, weights[i]);
    if (!most) continue;
    draw.globalAlpha = Math.sqrt(most / ten);
    const from = Math.round(c * width / columns);
    draw.fillRect(from, 0, Math.max(1, Math.round((c + 1) * width / columns) - from), canvas.height);
  }
}

// inspect says what each head gives to one position.
function inspect() {
  if (!last) return;
  const at = Number($("look-at").value), i = at - last.start;
  set($("look-said"), `position ${place(last, at)}: ` + last.weights.map((w, h) => `head ${last.first_head + h} ${percent(w[i] ?? 0)}`).join(", "));
}

addEventListener("resize", paintAll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paintAll);
$("look-at").addEventListener("input", () => { inspected = Number($("look-at").value); inspect(); });
$("look-pause").addEventListener("click", () => { if (events) stop(); else start(); });
$("look").addEventListener("submit", e => { e.preventDefault(); start(); });
$("look").addEventListener("change", e => {
  if (e.target === $("look-problem")) choose();
  start();
});
