// The dead letters, when an operator asks for them: a look receives, so that nothing here asks by itself.

import { $, duration, element, number, write } from "./elements.js";
import { storedToken, storeToken } from "./token.js";

let busy = false;

export function showLetters(state) {
  $("letters").hidden = !state.can_switch || !state.dead_letters?.count;
}

async function look(token) {
  let answer;
  try {
    answer = await fetch("/dead-letters", { headers: { Accept: "application/json", Authorization: `Bearer ${token}` } });
  } catch {
    throw new Error("The service did not answer.");
  }
  if (answer.status === 401 || answer.status === 403) storeToken("");
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(told.message ?? `The service answered ${answer.status}.`);
  storeToken(token);
  return told.dead_letters;
}

function shown(letter) {
  const item = element("li");
  const why = letter.reason ?? letter.error ?? "no reason is told: it was received too often";
  const age = letter.age_seconds === null ? "" : `, sent ${duration(letter.age_seconds)} ago`;
  const cut = letter.body_length - letter.body.length;
  item.append(
    element("span", why, "what"),
    element("code", letter.body + (cut > 0 ? ` … and ${number(cut)} more characters` : "")),
    element("span", `message ${letter.original_id ? `${letter.original_id} (here ${letter.id})` : letter.id}, receive ${letter.receives}${age}`, "where"),
  );
  return item;
}

$("letters-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (busy) return;
  const token = storedToken() || $("letters-token").value.trim();
  if (!token) {
    write($("letters-problem"), "Enter the token first.");
    $("letters-token").focus();
    return;
  }
  busy = true;
  write($("letters-problem"), "");
  write($("letters-done"), "Looking …");
  try {
    const letters = await look(token);
    $("letters-token").value = "";
    $("letters-list").replaceChildren(...letters.map(shown));
    write($("letters-done"), letters.length ? `${number(letters.length)} shown, and given back.` : "There are none to be seen.");
  } catch (error) {
    write($("letters-done"), "");
    write($("letters-problem"), error.message);
  } finally {
    busy = false;
  }
});

function showToken() {
  $("letters-token-fields").hidden = Boolean(storedToken());
}

document.addEventListener("token", showToken);
showToken();
