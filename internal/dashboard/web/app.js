// The page: it listens to the coordinator and shows what comes. If nothing comes any more it says since when.

import { $, make, set, rows, bytes, number, count, share, time, seconds } from "./lib.js";
import * as map from "./map.js";
import * as attention from "./attention.js";

// A coordinator that says nothing for so long is not there, even if the connection is. It says something each second, or less
// often if to ask the cluster takes long.
const silence = 15_000;

// shortest is the least time, in milliseconds, over which rates are taken.
const shortest = 500;

let before = null, last = null; // snapshots
let picked = new URLSearchParams(location.search).get("session") ?? "";
let events = null, heard = 0;

function connect() {
  events?.close();
  events = new EventSource("events" + (picked ? "?session=" + encodeURIComponent(picked) : ""));
  events.onmessage = e => { heard = Date.now(); show(JSON.parse(e.data)); };
  events.addEventListener("map", e => { if (last) map.draw(JSON.parse(e.data), new Date(last.at) / 1000); });
  events.onerror = () => {
    lost();
    enter();
  };
}

// me is who looks. Who is a stranger, as after a login has ended, is to log in.
let me = null;
async function enter() {
  try {
    const answer = await fetch("me");
    if (answer.status === 401) location.assign("login");
    if (answer.ok) me = await answer.json();
  } catch {
    return; // not connected, which is said
  }
  document.body.classList.toggle("admin", me?.role === "admin");
  $("leave").hidden = !me?.leaves;
  set($("me"), me?.name ? `${me.name} (${me.role})` : "");
}

// change asks for something to be changed.
async function change(path) {
  const answer = await fetch(path, { method: "POST", headers: { "X-Headwater-Token": me.token } });
  if (!answer.ok) alert(await answer.text());
}

// ender is a cell with a button that ends something, for admins.
function ender(text, question, path) {
  const td = make("td", "", { className: "end" }), button = make("button", text, { className: "link" });
  button.addEventListener("click", () => { if (confirm(question)) change(path); });
  td.append(button);
  return td;
}

$("leave").addEventListener("click", async () => {
  await change("logout");
  location.assign("login");
});

function lost() { stale(last ? "not connected since " + time(last.at) : "not connected"); }

function stale(text) {
  document.body.classList.add("stale");
  set($("state"), text);
}

setInterval(() => { if (heard && Date.now() - heard > silence) lost(); }, 1000);

// pick shows another session.
function pick(id) {
  picked = id;
  history.replaceState(null, "", id ? "?session=" + id : location.pathname);
  connect();
  if (last) sessions(last);
}

function show(s) {
  if (s.error) return stale(s.error);
  if (!last || new Date(s.at) - new Date(last.at) > shortest) before = last; // else rates would be of a moment
  last = s;
  document.body.classList.remove("stale");
  set($("state"), "as of " + time(s.at));
  set($("who"), s.coordinator + " " + s.version);
  totals(s.totals);
  workers(s);
  sessions(s);
  jobs(s);
  happenings(s);
  if (!s.sessions.length && !picked) map.none("No session is open.");
}

function totals(t) {
  const all = [
    ["workers", t.workers, "headwater_coordinator_workers"],
    ["left out", t.workers_left_out, "headwater_coordinator_workers_left_out", true],
    ["under-replicated shards", t.copies_lacking, "headwater_coordinator_copies_lacking", true],
    ["lanes", t.lanes, "headwater_coordinator_lanes"],
    ["workers lost", t.workers_lost_total, "headwater_coordinator_workers_lost_total"],
    ["sessions lost", t.sessions_lost_total, "headwater_coordinator_sessions_lost_total"],
    ["sessions moved", t.sessions_moved_total, "headwater_coordinator_sessions_moved_total"],
    ["copies made", t.copies_made_total, "headwater_coordinator_copies_made_total"],
    ["attends asked twice", t.attends_hedged_total, `headwater_coordinator_attends_hedged_total, of headwater_coordinator_attends_total (${number(t.attends_total)})`],
    ["shares of jobs lost", t.job_workers_lost_total, "headwater_coordinator_job_workers_lost_total"],
    ...Object.entries(t.jobs).map(([state, n]) => ["jobs " + state, n, `of all coordinators: the sum of headwater_coordinator_jobs{state="${state}"}`]),
  ];
  rows($("totals"), all, ([name]) => name, ([name, , metric]) => [make("dt", name, { title: metric }), make("dd", "", { title: metric })],
    (row, [, n, , bad]) => { set(row.children[1], number(n)); row.children[1].classList.toggle("bad", Boolean(bad && n)); }, "div");
}

// rates are what a worker did since the last snapshot, null where it does not tell.
function rates(w, old, spent) {
  const o = old.get(w.name + w.boot);
  if (!o || !w.counts || !o.counts || spent <= 0) return { bus: null, steps: null, waited: null };
  const steps = w.step_queue_seconds_count - o.step_queue_seconds_count;
  return {
    bus: w.bus_bytes_per_second ? (w.kernel_read_bytes_total - o.kernel_read_bytes_total) / spent / w.bus_bytes_per_second : null,
    steps: steps / spent,
    waited: steps ? (w.step_queue_seconds_sum - o.step_queue_seconds_sum) / steps : null,
  };
}

// columns is how many columns the workers have beside their names.
const columns = 9;

// answer prints a time within which so many answers came; 0 is that there were none.
const answer = s => seconds(s || null);

// most is how many workers are shown at once.
const most = 100;

const orders = {
  name: () => 0, // as they come
  memory: (a, b) => b.memory - a.memory,
  bus: (a, b) => b.bus - a.bus,
  queue: (a, b) => b.w.queued_steps - a.w.queued_steps,
  answers: (a, b) => b.w.answers.answer_p95_seconds - a.w.answers.answer_p95_seconds,
};

function workers(s) {
  const old = new Map((before?.workers ?? []).map(w => [w.name + w.boot, w]));
  const spent = before ? (new Date(s.at) - new Date(before.at)) / 1000 : 0;
  const all = s.workers.map(w => ({ w, memory: w.error ? -1 : (w.memory_used_bytes - w.memory_spare_bytes) / w.memory_budget_bytes, ...rates(w, old, spent) }));
  const order = orders[$("sort").value], silent = s.workers.filter(w => w.error).length, dumb = s.workers.some(w => !w.error && !w.counts);
  all.sort((a, b) => Boolean(b.w.error) - Boolean(a.w.error) || order(a, b)); // those that are left out first
  const named = all.filter(x => x.w.name.includes($("named").value.trim())), shown = named.slice(0, most);
  rows($("workers"), shown, x => x.w.name, x => [make("th", x.w.name, { scope: "row", className: "name", title: x.w.name }), ...Array.from({ length: columns }, () => make("td"))], (tr, x) => {
    const w = x.w, td = [...tr.children].slice(1);
    td.forEach((c, i) => { c.hidden = Boolean(w.error) && i > 0; });
    td[0].colSpan = w.error ? columns : 1;
    td[0].className = w.error ? "bad left name" : "";
    td[0].title = w.error ?? "";
    if (w.error) return set(td[0], w.error);
    const texts = [share(x.memory) + " of " + bytes(w.memory_budget_bytes), share(x.bus), x.steps === null ? "–" : number(Math.round(x.steps)), seconds(x.waited),
      answer(w.answers.answer_p50_seconds), answer(w.answers.answer_p95_seconds),
      number(w.queued_steps), number(w.sessions), w.prefix_asked_positions_total ? share(w.prefix_hit_positions_total / w.prefix_asked_positions_total) : "–"];
    texts.forEach((text, i) => set(td[i], text));
  });
  set($("workers-note"), (shown.length < all.length ? `${number(shown.length)} of ` : "") + count(all.length, "worker") +
    (silent ? `, ${number(silent)} of them left out` : "") + (dumb ? "; – is of workers without --admin, which do not count" : ""));
}

function sessions(s) {
  rows($("sessions"), s.sessions, x => x.id, x => {
    const th = make("th", "", { scope: "row" }), button = make("button", x.id.slice(0, 8), { className: "link", title: "show the map of session " + x.id });
    button.addEventListener("click", () => pick(x.id));
    th.append(button);
    return [th, make("td", x.name, { className: "left name", title: x.name }), ...Array.from({ length: 4 }, () => make("td")),
      ender("drop", `Drop session ${x.id.slice(0, 8)} ${x.name}? Its keys and values are gone then.`, "session/drop?id=" + x.id)];
  }, (tr, x) => {
    tr.className = x.id === picked ? "picked" : "";
    [number(x.length), bytes(x.page_bytes), number(x.holders), time(x.used)].forEach((text, i) => set(tr.children[i + 2], text));
  });
  const held = Math.max(0, ...s.workers.map(w => w.sessions));
  set($("sessions-note"), s.sessions_left_out ? `the first ${s.sessions.length} of at least ${number(Math.max(held, s.sessions.length + 1))}: find others by their id above` : count(s.sessions.length, "session"));
  if ($("ids").childElementCount !== s.sessions.length) $("ids").replaceChildren(...s.sessions.map(x => make("option", x.name, { value: x.id })));
}

function jobs(s) {
  rows($("jobs"), s.jobs, j => j.id, j => {
    const bar = make("progress", "", { max: 1 }), td = make("td");
    bar.setAttribute("aria-label", "progress of " + (j.name || j.id));
    td.append(bar);
    const th = make("th", "", { scope: "row", className: "name", title: j.id }), button = make("button", j.name || j.id, { className: "link", title: "show where the queries of job " + j.id + " look" });
    button.addEventListener("click", () => attention.explain(j.id, j.name || j.id));
    th.append(button);
    return [th, make("td", "", { className: "left name" }), td, ender("cancel", `Cancel job ${j.name || j.id}?`, "job/cancel?id=" + encodeURIComponent(j.id))];
  }, (tr, j) => {
    const over = !["uploading", "queued", "running"].includes(j.state);
    tr.querySelector("button").disabled = over || j.state === "uploading" || j.elsewhere;
    tr.querySelector(".end button").hidden = over;
    const said = j.state + (j.error ? ": " + j.error : j.state === "running" && j.phase ? ": " + j.phase : "");
    set(tr.children[1], said);
    tr.children[1].title = j.arithmetics.length ? `${said}; arithmetic ${j.arithmetics.join(" and ")}` : said;
    tr.querySelector("progress").value = j.done;
  });
  set($("jobs-note"), s.jobs_left_out ? `${number(s.jobs_left_out)} older ones are not shown` : count(s.jobs.length, "job"));
}

function happenings(s) {
  rows($("events"), s.events, e => String(e.number), e => [make("time", time(e.at), { dateTime: e.at }), make("span", e.text)], () => {}, "li");
  set($("events-note"), s.events.length ? "" : "Nothing since the coordinator started.");
}

map.onOpen((session, layer, group) => attention.watch(session, layer, group));
for (const [id, type] of [["sort", "change"], ["named", "input"]]) $(id).addEventListener(type, () => { if (last) workers(last); });
$("map-controls").addEventListener("submit", e => {
  e.preventDefault();
  pick($("find").value.trim().toLowerCase());
});
connect();
enter();
