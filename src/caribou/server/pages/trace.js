// One rollout: what it was about, and its conversation, followed while it runs.

import { get, Problem } from "./api.js";
import { Conversation } from "./conversation.js";
import { Bell, keepListening, pause, seen } from "./live.js";
import { address, block, cost, count, duration, element, moment, score, status } from "./text.js";

const PAGE = 500;
// Milliseconds. Spans may come to be seen after the summary that ends them.
const LAST_LOOKS = [0, 2000, 5000];

const RUNNING = "Running: what comes is added as it comes.";

/** The spans of a trace, read page by page; the last page is read again as it grows. */
class Spans {
  #path;
  #signal;
  #pages = [];
  #cursors = [null];

  constructor(path, signal) {
    this.#path = path;
    this.#signal = signal;
  }

  async read() {
    for (;;) {
      const last = this.#cursors.length - 1;
      const parameters = { cursor: this.#cursors[last], limit: PAGE };
      const page = await get(this.#path, parameters, this.#signal);
      this.#pages[last] = page.items;
      if (page.next_cursor === null) return this.#pages.flat();
      this.#cursors.push(page.next_cursor);
    }
  }
}

export async function showTrace(main, parameters, signal, speak) {
  const path = `/traces/${encodeURIComponent(parameters.trace_id)}`;
  const head = element("section", { "aria-label": "Summary" });
  const body = element("section", { "aria-label": "Conversation" });
  const conversation = new Conversation(body);
  let spans = new Spans(`${path}/spans`, signal);
  let trace = await get(path, {}, signal);
  head.replaceChildren(...summary(trace));
  main.append(element("h1", {}, `Trace ${trace.trace_id}`), head, body);
  conversation.show(await spans.read());
  if (!isRunning(trace)) {
    speak.say(ended(trace));
    return;
  }

  async function look() {
    const now = await get(path, {}, signal);
    if (JSON.stringify(now) !== JSON.stringify(trace)) head.replaceChildren(...summary(now));
    conversation.show(await spans.read());
    trace = now;
  }
  body.setAttribute("role", "log");
  speak.say(RUNNING);
  const bell = new Bell();
  keepListening({ trace_id: trace.trace_id }, signal, bell);
  let failed = false;
  while (isRunning(trace)) {
    await bell.wait(signal);
    await seen(signal);
    try {
      await look();
      if (failed) speak.say(RUNNING);
      failed = false;
    } catch (error) {
      if (!(error instanceof Problem) || (error.status > 0 && error.status < 500)) throw error;
      speak.complain(new Problem(error.status, `${error.message} Trying again.`));
      failed = true;
    }
  }
  bell.done();
  for (const wait of LAST_LOOKS) {
    await pause(wait, signal);
    // From the first: a scope that was open is another row now.
    spans = new Spans(`${path}/spans`, signal);
    await look();
    speak.say(ended(trace));
  }
}

function isRunning(trace) {
  return trace.status === "PENDING" && trace.interrupted !== true;
}

function ended(trace) {
  return trace.interrupted === true ? "Its process died before the rollout ended." : "Ended.";
}

function summary(trace) {
  const fact = (name, value) =>
    value === "" || value === null || value === undefined
      ? null
      : element("div", {}, element("dt", {}, name), element("dd", {}, value));
  const run = trace.run_id
    ? element("a", { href: address("traces", { run_id: trace.run_id }) }, trace.run_id)
    : "";
  const metadata = Object.entries(trace.metadata ?? {});
  return [
    element(
      "dl",
      {},
      fact("Status", status(trace)),
      fact("Score", typeof trace.score === "number" ? score(trace.score) : "not scored"),
      fact("Run", run),
      fact("Phase", trace.phase),
      fact("Step", count(trace.step_number)),
      fact("Datapoint", trace.datapoint_id),
      fact("Environment", trace.env_name),
      fact("Model", trace.model_name),
      fact("Grader", trace.grader_name),
      fact("Started (UTC)", moment(trace.start_time)),
      fact("Took", duration(trace.duration_ms)),
      fact("Turns", count(trace.turns)),
      fact("Messages", count(trace.messages)),
      fact("Tool calls", count(trace.tool_calls)),
      fact("Tool errors", trace.tool_errors ? count(trace.tool_errors) : ""),
      fact("Tokens in", count(trace.input_tokens)),
      fact("Tokens out", count(trace.output_tokens)),
      fact("Cost", cost(trace.cost_usd)),
      fact("Tags", (trace.tags ?? []).join(", ")),
      ...metadata.map(([name, value]) => fact(name, value)),
    ),
    trace.error_type || trace.error_message
      ? block([trace.error_type, trace.error_message].filter(Boolean).join(": "), "error")
      : null,
    trace.traceback
      ? element("details", {}, element("summary", {}, "Traceback"), block(trace.traceback))
      : null,
  ].filter(Boolean);
}
