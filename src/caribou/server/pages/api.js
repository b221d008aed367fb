// Calls to the service that this page came from.

const BASE = "/api/v1";
const KEY = "kestrel-api-key";

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** What the service said instead of an answer. */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function ask(path, parameters, signal, headers) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value != null);
  const query = new URLSearchParams(given).toString();
  const sent = key.get() === null ? {} : { Authorization: `Bearer ${key.get()}` };
  let response;
  try {
    response = await fetch(BASE + path + (query ? "?" + query : ""), {
      headers: { ...sent, ...headers },
      signal,
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The service cannot be reached.");
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const said = [problem.detail ?? problem.title, problem.hint].filter(Boolean).join(" ");
  throw new Problem(response.status, said || `The service answered ${response.status}.`);
}

/** One answer, as JSON. */
export async function get(path, parameters = {}, signal = undefined) {
  const response = await ask(path, parameters, signal, { Accept: "application/json" });
  return response.json();
}

/** Rings `bell` whenever the live stream says anything, be it a sign of life; until it ends. */
export async function listen(parameters, signal, bell) {
  const response = await ask("/live", parameters, signal, { Accept: "text/event-stream" });
  const reader = response.body.getReader();
  while (!(await reader.read()).done) bell.ring();
}
