// The lists: runs, and traces with their filters.

import { get } from "./api.js";
import { address, cost, count, duration, element, moment, score, status } from "./text.js";

const STATUSES = [
  "PENDING",
  "COMPLETED",
  "TRUNCATED",
  "ABORTED",
  "ENV_SETUP_ERROR",
  "STEP_ERROR",
  "GRADER_TIMEOUT",
  "GRADER_ERROR",
  "TOOL_ERROR",
  "ERROR",
];

// Traces among which runs are looked for that nobody registered.
const LATEST = 1000;

/** A table that takes up one page of items after the other, at a button. */
function pagedTable({ caption, none, columns, path, parameters, signal, speak }) {
  const body = element("tbody");
  const head = columns.map(([title, , className]) =>
    element("th", { scope: "col", class: className }, title),
  );
  const table = element(
    "table",
    {},
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...head)),
    body,
  );
  const more = element("button", { type: "button", class: "more", hidden: "" }, "Show more");
  let cursor = null;

  async function load() {
    more.disabled = true;
    try {
      const page = await get(path, { ...parameters, cursor, limit: 100 }, signal);
      for (const item of page.items) {
        const cells = columns.map(([, show, className]) =>
          element("td", { class: className }, show(item)),
        );
        body.append(element("tr", {}, ...cells));
      }
      cursor = page.next_cursor;
      more.hidden = cursor === null;
      const shown = body.childElementCount;
      speak.say(shown === 0 ? none : cursor === null ? `${count(shown)} in all` : `${count(shown)} shown`);
    } finally {
      more.disabled = false;
    }
  }
  more.addEventListener("click", () => load().catch(speak.complain));
  return [element("div", { class: "wide" }, table, more), load()];
}

function tags(item) {
  return (item.tags ?? []).join(", ");
}

/** Registered runs, the latest first. */
export async function showRuns(main, _parameters, signal, speak) {
  const [table, loaded] = pagedTable({
    caption: "Runs that were registered, each with its traces",
    none: "No run is registered here.",
    path: "/runs",
    parameters: {},
    columns: [
      ["Run", (run) => element("a", { href: address("traces", { run_id: run.run_id }) }, run.name || run.run_id)],
      ["Project", (run) => run.project],
      ["Phase", (run) => run.phase],
      ["Status", (run) => run.status],
      ["Tags", tags],
      ["Created (UTC)", (run) => moment(run.created_at)],
      ["Finished (UTC)", (run) => moment(run.finished_at)],
    ],
    signal,
    speak,
  });
  main.append(element("h1", {}, "Runs"), table);
  await loaded;
  const latest = await get("/traces", { limit: LATEST }, signal);
  main.append(...runsAmong(latest.items));
}

/** The runs of these traces, registered or not, by their latest trace. */
function runsAmong(traces) {
  const runs = new Map();
  for (const trace of traces) {
    const run = runs.get(trace.run_id) ?? { latest: trace, count: 0 };
    runs.set(trace.run_id, { ...run, count: run.count + 1 });
  }
  const rows = [...runs].map(([run_id, run]) =>
    element(
      "tr",
      {},
      element("td", {}, runLink(run_id)),
      element("td", {}, run.latest.phase),
      element("td", { class: "number" }, count(run.count)),
      element("td", {}, moment(run.latest.start_time)),
    ),
  );
  const head = ["Run", "Phase", "Traces", "Latest (UTC)"].map((title) =>
    element("th", { scope: "col", class: title === "Traces" ? "number" : null }, title),
  );
  const table = element(
    "table",
    {},
    element("caption", {}, `Runs of the latest ${count(traces.length)} traces, registered or not`),
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...rows),
  );
  return rows.length === 0 ? [] : [element("h2", {}, "Latest"), element("div", { class: "wide" }, table)];
}

function runLink(run_id) {
  return run_id ? element("a", { href: address("traces", { run_id }) }, run_id) : "none";
}

function filterForm(parameters) {
  const field = (label, control) => element("label", {}, label, control);
  const run = element("input", { name: "run_id", type: "search", spellcheck: "false" });
  run.value = parameters.run_id ?? "";
  const text = element("input", { name: "text", type: "search" });
  text.value = parameters.text ?? "";
  const state = element(
    "select",
    { name: "status" },
    element("option", { value: "" }, "any"),
    ...STATUSES.map((name) =>
      element("option", { value: name }, name === "PENDING" ? "PENDING (running)" : name),
    ),
  );
  state.value = STATUSES.includes(parameters.status) ? parameters.status : "";
  const form = element(
    "form",
    { role: "search", "aria-label": "Filter traces" },
    field("Run", run),
    field("Status", state),
    field("Text in the conversation", text),
    element("button", {}, "Filter"),
    element("a", { href: address("traces") }, "All traces"),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    location.hash = address("traces", Object.fromEntries(new FormData(form)));
  });
  return form;
}

/** Traces that match the filters, the latest first. */
export async function showTraces(main, parameters, signal, speak) {
  const { run_id, status: state, text } = parameters;
  const traceLink = (trace) =>
    element(
      "a",
      { href: address(`trace/${encodeURIComponent(trace.trace_id)}`), class: "id" },
      trace.trace_id.slice(0, 12),
    );
  const [table, loaded] = pagedTable({
    caption: "Traces, the latest first",
    none: "No trace matches.",
    path: "/traces",
    parameters: { run_id, status: state, text },
    columns: [
      ["Trace", traceLink],
      ["Started (UTC)", (trace) => moment(trace.start_time)],
      ["Status", status],
      ["Score", (trace) => score(trace.score), "number"],
      ["Run", (trace) => runLink(trace.run_id)],
      ["Step", (trace) => count(trace.step_number), "number"],
      ["Datapoint", (trace) => trace.datapoint_id],
      ["Model", (trace) => trace.model_name],
      ["Turns", (trace) => count(trace.turns), "number"],
      ["Tokens", (trace) => count(trace.input_tokens + trace.output_tokens), "number"],
      ["Cost", (trace) => cost(trace.cost_usd), "number"],
      ["Took", (trace) => duration(trace.duration_ms), "number"],
      ["Tags", tags],
    ],
    signal,
    speak,
  });
  main.append(element("h1", {}, "Traces"), filterForm(parameters), table);
  await loaded;
}
