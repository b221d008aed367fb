// The spans of one trace as a conversation that can grow while it is read.

import { block, cost, count, duration, element, parsed, readable, score } from "./text.js";

const ROLES = new Set(["system", "user", "assistant", "tool"]);

/** Shows spans in `container`, and leaves what is there alone where nothing changed. */
export class Conversation {
  #container;
  #shown = new Map();

  constructor(container) {
    this.#container = container;
  }

  /** Show these spans, which are in order. */
  show(spans) {
    const shown = new Map();
    let at = this.#container.firstChild;
    for (const [key, version, make] of pieces(spans)) {
      const known = this.#shown.get(key);
      const node = known?.version === version ? known.node : make();
      shown.set(key, { version, node });
      if (node === at) at = at.nextSibling;
      else this.#container.insertBefore(node, at);
    }
    while (at !== null) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
    this.#shown = shown;
  }
}

/** What is to be seen: a key, what it was made of, and how to make it. */
function* pieces(spans) {
  const depths = new Map();
  // What was shown by the id of the call: agent loops log the same text more than once.
  const seen = { calls: new Map(), results: new Map() };
  let turn = null;
  for (const [index, span] of spans.entries()) {
    if (span.turn_index !== turn) {
      turn = span.turn_index;
      const title = `Turn ${count(turn)}`;
      yield [`turn ${turn} before ${span.span_id}`, title, () => element("h2", {}, title)];
    }
    const depth = (depths.get(span.parent_span_id) ?? -1) + 1;
    depths.set(span.span_id, depth);
    const known = {
      depth,
      calls: seen.calls.get(span.tool_call_id),
      result: seen.results.get(span.tool_call_id),
    };
    remember(seen, span);
    yield [
      span.span_id || `span ${index}`,
      JSON.stringify([span, known]),
      () => article(span, known),
    ];
  }
}

function remember(seen, span) {
  for (const call of listOf(span.tool_calls)) {
    if (typeof call?.id === "string") seen.calls.set(call.id, readable(callOf(call).arguments));
  }
  if (span.kind === "tool" && span.tool_call_id && span.result !== null) {
    seen.results.set(span.tool_call_id, span.result);
  }
}

function article(span, known) {
  const kind = String(span.kind);
  const [title, className, body] =
    kind === "message" || kind.startsWith("grader.")
      ? message(span, known)
      : kind === "tool"
        ? tool(span, known)
        : kind === "grade"
          ? grade(span)
          : other(span);
  const failed = span.status === "ERROR" || Boolean(span.error);
  const classes = [className, failed ? "failed" : "", `depth-${Math.min(known.depth, 3)}`];
  const facts = [
    failed ? "failed" : "",
    span.status === "PENDING" ? "running" : "",
    span.status === "ABORTED" ? "aborted" : "",
    kind === "message" || kind.startsWith("grader.") ? span.model : "",
    kind === "grade" ? span.grader_type : "",
    ...usage(span),
    span.late ? "late" : "",
    span.sanitized ? `sanitized: ${span.sanitized}` : "",
  ];
  const attributes = Object.entries(span.attributes ?? {});
  return element(
    "article",
    { class: classes.filter(Boolean).join(" ") },
    element("h3", {}, title),
    element("span", { class: "details" }, facts.filter(Boolean).join(" · ")),
    ...body,
    span.status_message && span.status_message !== span.error
      ? block(span.status_message, "error")
      : null,
    attributes.length > 0
      ? folded("Attributes", block(attributes.map(([k, v]) => `${k} = ${v}`).join("\n")))
      : null,
  );
}

function message(span, known) {
  const role = span.role || "message";
  const title = span.grader_name ? `grader ${span.grader_name} · ${role}` : role;
  const body = [];
  if (role === "tool" && span.content !== null && known.result === span.content) {
    body.push(element("p", { class: "quiet" }, "The result above, as the agent was given it."));
  } else {
    body.push(...content(span));
  }
  for (const call of listOf(span.tool_calls)) {
    const asked = callOf(call);
    body.push(
      element("h4", {}, `calls ${asked.name ?? "?"}`),
      block(readable(asked.name === undefined ? call : (asked.arguments ?? ""))),
    );
  }
  if (span.prompt) body.push(folded("Prompt", block(span.prompt)));
  const name = role === "tool" && span.tool_name ? `${title} ${span.tool_name}` : title;
  return [name, ROLES.has(role) ? role : "", body];
}

/** The content as text; parts that are not text are shown as the JSON they are. */
function content(span) {
  if (span.content === null || span.content === "") return [];
  if (!isStructured(span, "content")) return [block(span.content, "prose")];
  const parts = parsed(span.content);
  if (!Array.isArray(parts)) return [block(readable(span.content))];
  return parts.map((part) =>
    typeof part?.text === "string" ? block(part.text, "prose") : block(readable(part)),
  );
}

function tool(span, known) {
  const body = [];
  const given = span.arguments ? readable(span.arguments) : "";
  if (given && given !== known.calls) body.push(element("h4", {}, "arguments"), block(given));
  if (span.error) body.push(element("h4", {}, "error"), block(span.error, "error"));
  if (span.result !== null && span.result !== undefined) {
    const shown = isStructured(span, "result") ? readable(span.result) : laidOut(span.result);
    body.push(element("h4", {}, "result"), block(shown));
  }
  const by = span.requestor && span.requestor !== "agent" ? ` (asked by the ${span.requestor})` : "";
  return [`tool ${span.tool_name}${by}`, "tool", body];
}

function grade(span) {
  const name = span.grader_name || span.grader_type || "";
  const value = typeof span.score === "number" ? `score ${score(span.score)}` : "not scored";
  const passed =
    typeof span.total_count === "number"
      ? ` · ${count(span.passed_count ?? 0)} of ${count(span.total_count)} passed`
      : "";
  const body = span.reasoning ? [block(span.reasoning, "prose")] : [];
  const criteria = listOf(span.criteria);
  if (criteria.length > 0) {
    const items = criteria.map((criterion) => element("li", {}, block(readable(criterion))));
    body.push(folded("Criteria", element("ul", {}, ...items)));
  }
  return [`grade ${name}: ${value}${passed}`, "grade", body];
}

function other(span) {
  const kind = String(span.kind);
  const word = kind === "event" ? "event" : kind === "span" ? "scope" : `scope (${kind})`;
  const name = String(span.name);
  const shown = name.startsWith(`${kind}.`) ? name.slice(kind.length + 1) : name;
  const empty = !span.data || span.data === "{}";
  return [`${word} ${shown}`, "", empty ? [] : [block(readable(span.data))]];
}

function usage(span) {
  const buckets = [
    ["input_tokens", "tokens in"],
    ["cache_read_tokens", "read from cache"],
    ["cache_write_tokens", "written to cache"],
    ["output_tokens", "tokens out"],
    ["reasoning_tokens", "of reasoning"],
  ];
  const tokens = buckets
    .filter(([key]) => span[key])
    .map(([key, word]) => `${count(span[key])} ${word}`);
  return [...tokens, cost(span.cost_usd), span.duration_ms ? duration(span.duration_ms) : ""];
}

function folded(title, ...children) {
  return element("details", {}, element("summary", {}, title), ...children);
}

function isStructured(span, name) {
  return Array.isArray(span.structured) && span.structured.includes(name);
}

/** Text that is JSON of some length is laid out too: tools answer in it. */
function laidOut(text) {
  return /^[[{]/.test(text) && text.length > 88 ? readable(text) : text;
}

function listOf(value) {
  const held = parsed(value);
  return Array.isArray(held) ? held : [];
}

function callOf(call) {
  const asked = call?.function ?? call;
  return asked !== null && typeof asked === "object" ? asked : {};
}
