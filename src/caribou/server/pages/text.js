// Text and elements. What agents wrote is hostile: it becomes text nodes and nothing else, and
// characters that act on what is read (controls, bidirectional marks) are shown as escapes.

const HARMFUL = new RegExp(
  "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u200b\\u200c\\u200e\\u200f" +
    "\\u2028-\\u202e\\u2060-\\u2069\\ufeff\\ufff9-\\ufffb\\u{e0000}-\\u{e007f}\\ud800-\\udfff]",
  "gu",
);

function visible(character) {
  const code = character.codePointAt(0);
  if (code < 0x100) return "\\x" + code.toString(16).padStart(2, "0");
  if (code < 0x10000) return "\\u" + code.toString(16).padStart(4, "0");
  return "\\U" + code.toString(16).padStart(8, "0");
}

/** Text with harmful characters shown as escapes; newlines and tabs stay. */
export function safe(value) {
  return String(value).replaceAll("\r\n", "\n").replace(HARMFUL, visible);
}

/**
 * An element. Attributes are this page's own; children are elements, or values that become text.
 * Children that are null, undefined or false are left out.
 */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
  }
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    made.append(child instanceof Node ? child : safe(child));
  }
  return made;
}

/** The address of a view of this page: always a fragment, whatever the parameters hold. */
export function address(view, parameters = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value != null);
  const query = new URLSearchParams(given).toString();
  return "#/" + view + (query ? "?" + query : "");
}

/** What JSON text holds; anything else as it is. */
export function parsed(value) {
  if (typeof value !== "string") return value;
  try {
    return JSON.parse(value);
  } catch {
    return value;
  }
}

/** JSON laid out for reading; text that is not JSON of an object or array as it is. */
export function readable(value) {
  const held = parsed(value);
  if (held === null || typeof held !== "object") {
    return typeof value === "string" ? value : JSON.stringify(value);
  }
  const flat = JSON.stringify(held);
  return flat.length <= 88 ? flat : JSON.stringify(held, null, 2);
}

const LONGEST = 6000;

/** A block of text as it was written; of a long one the beginning, the rest at a button. */
export function block(value, className = "text") {
  const text = String(value);
  const pre = element("pre", { class: className });
  // A few characters more are not worth a button.
  if (text.length <= LONGEST * 1.2) {
    pre.textContent = safe(text);
    return pre;
  }
  pre.textContent = safe(text.slice(0, LONGEST));
  const more = element(
    "button",
    { type: "button", class: "more" },
    `Show all ${count(text.length)} characters`,
  );
  more.addEventListener("click", () => {
    pre.textContent = safe(text);
    pre.tabIndex = -1;
    pre.focus();
    more.remove();
  });
  return element("div", {}, pre, more);
}

export function count(value) {
  return typeof value === "number" ? value.toLocaleString("en-US") : String(value ?? "");
}

export function score(value) {
  return typeof value === "number" ? String(Math.round(value * 1000) / 1000) : "–";
}

export function cost(value) {
  if (typeof value !== "number" || value === 0) return "";
  return "$" + (value >= 0.1 ? value.toFixed(2) : value.toPrecision(2));
}

/** Milliseconds in the unit that people would use. */
export function duration(value) {
  if (typeof value !== "number") return "";
  if (value < 1000) return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
  if (value < 60_000) return `${(value / 1000).toFixed(1)} s`;
  const seconds = Math.round(value / 1000);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

/** A moment as the API gives it (ISO 8601, UTC), to the second. */
export function moment(value) {
  if (typeof value !== "string" || value === "") return "";
  const shown = value.slice(0, 19).replace("T", " ");
  return element("time", { datetime: value, title: "UTC" }, shown);
}

const STATES = { COMPLETED: "good", PENDING: "open", TRUNCATED: "odd", ABORTED: "odd" };

/** A trace's status: what is stored, and whether its process died. */
export function status(trace) {
  if (trace.interrupted === true) return element("span", { class: "state bad" }, "INTERRUPTED");
  const state = Object.hasOwn(STATES, trace.status) ? STATES[trace.status] : "bad";
  const shown = trace.status === "PENDING" ? "running" : trace.status;
  return element("span", { class: `state ${state}` }, shown);
}
