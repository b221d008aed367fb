// Which view the address asks for, what is said about it, and the API key.

import { key, Problem } from "./api.js";
import { showRuns, showTraces } from "./lists.js";
import { safe } from "./text.js";
import { showTrace } from "./trace.js";

const main = document.getElementById("content");
const notice = document.getElementById("notice");
const keyForm = document.getElementById("key-form");
const keyField = document.getElementById("key");
const forget = document.getElementById("forget");
let leave = new AbortController();

function say(text) {
  notice.className = "";
  notice.textContent = safe(text);
}

function complain(error) {
  notice.className = "problem";
  if (error instanceof Problem && error.status === 401) {
    notice.textContent =
      key.get() === null ? "The service asks for its API key." : "The service refused this API key.";
    keyForm.hidden = false;
    keyField.focus();
    return;
  }
  notice.textContent = safe(error.message);
}

/** The view and the parameters that the address names. */
function wanted() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const parameters = Object.fromEntries(new URLSearchParams(query));
  const [, trace] = /^trace\/(.+)$/.exec(path) ?? [];
  if (trace !== undefined) return [showTrace, { trace_id: decodeURIComponent(trace) }, ""];
  if (path === "runs") return [showRuns, parameters, "runs"];
  return [showTraces, parameters, "traces"];
}

async function show() {
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  // A view that was left has nothing to say any more.
  const speak = {
    say: (text) => signal.aborted || say(text),
    complain: (error) => signal.aborted || complain(error),
  };
  main.replaceChildren();
  keyForm.hidden = true;
  forget.hidden = key.get() === null;
  say("Loading …");
  try {
    const [view, parameters, name] = wanted();
    for (const link of document.querySelectorAll("nav a")) {
      if (link.hash === `#/${name}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    await view(main, parameters, signal, speak);
  } catch (error) {
    speak.complain(error);
  }
}

keyForm.addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(keyField.value);
  keyField.value = "";
  show();
});
forget.addEventListener("click", () => {
  key.forget();
  show();
});
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
window.addEventListener("hashchange", () => {
  show();
  main.focus({ preventScroll: true });
  window.scrollTo(0, 0);
});
show();
