// The live page. It renders what GET /events sends: `state` once a second, `charts` every five seconds, `end` when the service stops.
//
// Everything from outside (message ids, errors, reasons) goes into the page as text, never as markup; the policy of the page
// (trusted types) would refuse anything else. Nothing is asked of the service while the tab is hidden.

import { showCharts } from "./charts.js";
import { $, duration, element, fillFigures, fillRows, number, plural, write } from "./elements.js";
import { showLetters } from "./letters.js";
import { storedToken, storeToken } from "./token.js";

const RECONNECT_MS = 3000;
const FLEET_EVERY_MS = 5000;
const SILENCE_MS = 6000;

// -- the state --

function showState(state) {
  const box = $("state");
  box.dataset.kind = state.kind;
  write($("title"), state.title);
  write($("text"), state.text);
  document.title = `${state.title} – svc`;
  write($("queue-name"), state.queue_url.split("/").pop());
  write($("version"), `svc ${state.version}`);
  showFacts(state.switch);
  showDrain(state.drain);
  showTroubles(state.troubles);
  showQueue(state.depth, state.dead_letters, state.receives_outstanding);
  showCounts(state.counts);
  showFlight(state.in_flight, state.counts.in_flight);
  showReport(state.report);
  showErrors(state.errors);
  showSwitch(state);
  showLetters(state);
  if (state.fleet && !fleetTimer) askFleet();
}

function showFacts(held) {
  const told = held ? [["Only for", held.keys.includes("all") ? null : "this instance"], ["Reason", held.reason], ["Asked for by", held.by], ["Until", held.until]].filter(([, text]) => text) : [];
  const list = $("facts");
  list.hidden = told.length === 0;
  const parts = told.flatMap(([name, text]) => [[name, "dt"], [text, "dd"]]);
  while (list.children.length > parts.length) list.lastElementChild.remove();
  parts.forEach(([text, tag], index) => {
    if (!list.children[index]) list.append(element(tag));
    write(list.children[index], text);
  });
}

function showDrain(drain) {
  $("drain").hidden = !drain;
  if (!drain) return;
  const done = $("drain-done");
  done.max = Math.max(1, drain.total);
  done.value = drain.total ? drain.done : 1;
  write($("drain-done-text"), drain.total ? `${number(drain.done)} of ${number(drain.total)}` : "none were in flight");
  const time = $("drain-time");
  time.max = drain.seconds_allowed;
  time.value = drain.seconds_left;
  write($("drain-time-text"), `${duration(drain.seconds_left)} of ${duration(drain.seconds_allowed)}`);
}

function showTroubles(troubles) {
  const list = $("troubles");
  list.hidden = troubles.length === 0;
  while (list.children.length > troubles.length) list.lastElementChild.remove();
  troubles.forEach((trouble, index) => {
    let item = list.children[index];
    if (!item) {
      item = element("li", undefined, "trouble");
      item.append(element("strong"), element("span"));
      list.append(item);
    }
    write(item.firstElementChild, trouble.title);
    write(item.lastElementChild, trouble.text);
  });
}

function showQueue(depth, dead, outstanding) {
  const asked = depth ?? { visible: null, in_flight: null, delayed: null };
  const rows = [["waiting", number(asked.visible)], ["in flight, all consumers", number(asked.in_flight)]];
  if (asked.delayed) rows.push(["delayed", number(asked.delayed)]);
  if (dead) rows.push(["dead letters", number(dead.count), dead.count > 0]);
  rows.push(["receives of ours open", number(outstanding)]);
  fillFigures($("depth"), rows);
  const age = depth ? `As SQS said ${duration(depth.seconds)} ago, approximately.` : "SQS has not been asked yet.";
  const said = depth?.error ? `SQS was asked ${duration(depth.seconds)} ago: ${depth.error}` : age;
  const letters = dead?.error ? ` The dead-letter queue: ${dead.error}` : dead?.count ? " svc dlq list shows the dead letters." : "";
  write($("depth-note"), said + letters);
}

function showCounts(counts) {
  fillFigures($("counts"), [
    ["received", number(counts.received)],
    ["processed", number(counts.processed)],
    ["failed", number(counts.failed), counts.failed > 0],
    ["given back", number(counts.released)],
    ["rejected", number(counts.rejected), counts.rejected > 0],
    ["lost", number(counts.lost), counts.lost > 0],
  ]);
}

const DOING = { waiting: "waiting its turn", processing: "being processed", settling: "being settled" };

function showFlight(shown, count) {
  write($("flight-count"), count ? number(count) : "");
  $("flight").hidden = shown.length === 0;
  $("flight-none").hidden = shown.length > 0;
  fillRows($("flight").tBodies[0], shown.map((entry) => [
    [entry.id, "id"], [DOING[entry.doing], ""], [entry.receives, "number"], [duration(entry.seconds), "number"],
  ]));
  const more = count - shown.length;
  $("flight-more").hidden = more <= 0;
  write($("flight-more"), `The oldest ${shown.length}; ${number(more)} more came later.`);
}

const FIGURES = {
  in_flight: "In flight when it began", receives_brought: "Brought by open receives", completed: "Finished", failed: "Failed",
  released: "Given back", rejected: "Rejected", lost: "Lost", receives_unlanded: "Receives without an answer",
};
const LISTS = {
  timed_out: "Cancelled and given back, because the time was over", stubborn: "Still running after that",
  next_receive_dead_letters: "Given back after their last receive: the next one moves them to the dead-letter queue",
  last_receives_returned: "Landed in their last receive when all was quiet, and given back: the next one moves them to the dead-letter queue",
  unsettled: "Not confirmed by SQS", lost_ids: "Lost to another consumer",
};

function outcome(report) {
  const took = `in ${duration(report.seconds)}, ${duration(report.ago)} ago`;
  switch (report.outcome) {
    case "drained": return `Drained ${took}: everything was finished or given back.`;
    case "expired": return `Ran out of time after ${duration(report.seconds)}, ${duration(report.ago)} ago.`;
    default: return `Called off after ${duration(report.seconds)}, ${duration(report.ago)} ago: maintenance was switched off.`;
  }
}

function showReport(report) {
  const line = $("report-outcome");
  if (!report) return;
  line.dataset.outcome = report.outcome;
  write(line, outcome(report));
  const always = ["in_flight", "completed"];
  const rows = Object.entries(FIGURES)
    .filter(([name]) => always.includes(name) || report.figures[name])
    .map(([name, text]) => [text, number(report.figures[name]), ["failed", "lost", "receives_unlanded"].includes(name)]);
  if (report.requests_unfinished) rows.push(["API requests without an answer", number(report.requests_unfinished), true]);
  fillFigures($("report"), rows);
  const lists = Object.entries(LISTS).filter(([name]) => report.lists[name].count);
  const held = $("report-lists");
  const key = JSON.stringify(lists.map(([name]) => report.lists[name]));
  if (held.dataset.key === key) return;
  held.dataset.key = key;
  held.replaceChildren(...lists.map(([name, text]) => {
    const { count, ids } = report.lists[name];
    const part = element("div", undefined, "ids");
    part.append(element("p", `${text} (${number(count)})`));
    const list = element("ul");
    ids.forEach((id) => {
      const item = element("li");
      item.append(element("code", id));
      list.append(item);
    });
    if (count > ids.length) list.append(element("li", `and ${number(count - ids.length)} more: see GET /health`));
    part.append(list);
    return part;
  }));
}

function showErrors(errors) {
  $("errors-none").hidden = errors.length > 0;
  const list = $("errors");
  while (list.children.length > errors.length) list.lastElementChild.remove();
  errors.forEach((error, index) => {
    let item = list.children[index];
    if (!item) {
      item = element("li");
      item.append(element("span", "", "what"), element("span", "", "where"));
      list.append(item);
    }
    write(item.firstElementChild, error.error);
    write(item.lastElementChild, `${duration(error.seconds)} ago, message ${error.id}`);
  });
}

// -- the fleet, when there is one --

let fleetTimer = 0;

async function askFleet() {
  fleetTimer = setTimeout(() => { fleetTimer = 0; }, FLEET_EVERY_MS); // the state that comes next asks again
  try {
    const answer = await fetch("/fleet", { headers: { Accept: "application/json" } });
    if (answer.ok) showFleet((await answer.json()).instances ?? []);
  } catch {
    // The feed tells that the service is gone.
  }
}

function shownPhase(instance) {
  return instance.phase === "draining" && instance.quiet ? "landing" : instance.phase;
}

function showFleet(instances) {
  $("fleet").hidden = instances.length === 0;
  write($("fleet-count"), plural(instances.length, "instance", "instances"));
  fillRows($("fleet-rows"), instances.map((instance) => [
    [instance.id, "id"], [shownPhase(instance), ""], [number(instance.in_flight), "number"], [instance.version ?? "", "number"],
  ]));
}

// -- the feed --

let source = null;
let reconnect = 0;
let heardAt = 0;

function showLink(kind, text) {
  $("link").dataset.kind = kind;
  document.body.classList.toggle("stale", kind === "lost");
  write($("link-text"), text);
}

function heard(show) {
  return (event) => {
    heardAt = performance.now();
    showLink("live", "Live");
    show(JSON.parse(event.data));
  };
}

function connect() {
  clearTimeout(reconnect);
  source?.close();
  source = new EventSource("/events");
  source.addEventListener("state", heard(showState));
  source.addEventListener("charts", heard(showCharts));
  source.addEventListener("end", () => lost("The service has stopped. What you see is its last word."));
  source.addEventListener("error", () => {
    // Where the browser tries again by itself it says CONNECTING; an answer that is no stream ends its patience.
    if (source.readyState === EventSource.CLOSED) lost("No connection. What you see is old; trying again.");
    else if (performance.now() - heardAt > SILENCE_MS) showLink("lost", "No connection. What you see is old; trying again.");
  });
}

function lost(text) {
  source?.close();
  showLink("lost", text);
  clearTimeout(reconnect);
  if (!document.hidden) reconnect = setTimeout(connect, RECONNECT_MS);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) return connect();
  source?.close();
  clearTimeout(reconnect);
});

setInterval(() => {
  if (document.hidden || $("link").dataset.kind !== "live" || performance.now() - heardAt <= SILENCE_MS) return;
  showLink("lost", "Nothing heard for some seconds. What you see is old.");
}, 1000);

// -- maintenance on and off --

const dialog = $("dialog");
let asking = null;
let force = false; // the service has said whose maintenance it is, and the button says "all the same"
let busy = false;
let alone = false; // there is no etcd: what is switched is this instance

function showSwitch(state) {
  const on = Boolean(state.switch);
  const ways = "svc maintenance on, off and status do the same from a terminal.";
  alone = !state.key;
  const what = alone ? "The switch of this instance" : `The key ${state.key}`;
  const counts = alone
    ? `There is no fleet: this instance runs by itself${state.file ? `, and ${state.file} holds its switch` : ""}.`
    : "It counts for every instance that watches it.";
  const how = state.can_switch ? ways : `To switch it from this page, give the service an API_TOKEN; ${ways}`;
  write($("switch-text"), `${what} is ${on ? "on" : "off"}. ${counts} ${how}`);
  $("actions").hidden = !state.can_switch;
  $("open-on").disabled = on;
  $("open-off").disabled = !on;
}

function ask(kind) {
  asking = kind;
  force = false;
  const on = kind === "on";
  write($("dialog-title"), on ? "Start maintenance?" : "End maintenance?");
  const who = alone ? "This instance" : "Every instance that watches the key";
  write($("dialog-text"), on
    ? `${who} stops receiving, finishes what it has and gives back the rest.`
    : `${who} receives messages again.`);
  write($("confirm"), on ? "Start maintenance" : "End maintenance");
  write($("dialog-problem"), "");
  write($("switch-done"), "");
  $("on-fields").hidden = !on;
  $("token-fields").hidden = Boolean(storedToken());
  dialog.showModal();
}

async function send() {
  const token = storedToken() || $("token").value.trim();
  if (!token) throw new Error("Enter the token first.");
  const request = { method: asking === "on" ? "PUT" : "DELETE", headers: { Authorization: `Bearer ${token}` } };
  if (asking === "on") {
    const wanted = { by: "the page", force };
    if ($("reason").value.trim()) wanted.reason = $("reason").value.trim();
    if ($("duration").value) wanted.for = Number($("duration").value);
    request.headers["Content-Type"] = "application/json";
    request.body = JSON.stringify(wanted);
  }
  let answer;
  try {
    answer = await fetch(asking === "on" ? "/maintenance" : `/maintenance?by=the%20page&force=${force}`, request);
  } catch {
    throw new Error("The service did not answer.");
  }
  if (answer.ok) return storeToken(token);
  if (answer.status === 401 || answer.status === 403) {
    storeToken("");
    $("token-fields").hidden = false;
  }
  const told = await answer.json().catch(() => ({}));
  if (answer.status === 409) {
    storeToken(token);
    force = true;
    write($("confirm"), asking === "on" ? "Start it all the same" : "End it all the same");
  }
  throw new Error(told.message ?? `The service answered ${answer.status}.`);
}

$("dialog-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (busy) return;
  busy = true;
  $("confirm").disabled = true;
  write($("dialog-problem"), "");
  try {
    await send();
    $("token").value = "";
    dialog.close();
    $("switch-done").focus(); // the button that was pressed is about to be switched off
    write($("switch-done"), asking === "on" ? "Maintenance was asked for." : "The end of maintenance was asked for.");
  } catch (error) {
    write($("dialog-problem"), error.message);
    if (!$("token-fields").hidden) $("token").focus();
  } finally {
    busy = false;
    $("confirm").disabled = false;
  }
});

$("open-on").addEventListener("click", () => ask("on"));
$("open-off").addEventListener("click", () => ask("off"));
$("cancel").addEventListener("click", () => dialog.close());
$("forget").addEventListener("click", () => {
  storeToken("");
  write($("switch-done"), "The token is forgotten.");
});
document.addEventListener("token", () => { $("forget").hidden = !storedToken(); });
$("forget").hidden = !storedToken();
connect();
