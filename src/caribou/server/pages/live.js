// When to look again: the live stream says when something came; without it, every second.

import { listen } from "./api.js";

const WITHOUT_STREAM = 1000;
// The stream gives a sign of life more often than that.
const WITH_STREAM = 30_000;
const RETRY = 5000;

/** Rung when there may be something new; remembers a ring that nobody waited for. */
export class Bell {
  #rung = false;
  #wake = () => {};
  #listening = false;
  #done = new AbortController();

  /** Aborted when nobody waits any more. */
  get signal() {
    return this.#done.signal;
  }

  ring() {
    this.#rung = true;
    this.#listening = true;
    this.#wake();
  }

  /** The stream is not there. */
  deaf() {
    this.#listening = false;
    this.#wake();
  }

  done() {
    this.#done.abort();
  }

  /** Resolves at a ring, or when it is time to look without one. */
  async wait(signal) {
    const woken = new Promise((resolve) => (this.#wake = resolve));
    const patience = this.#listening ? WITH_STREAM : WITHOUT_STREAM;
    if (!this.#rung) await Promise.race([woken, pause(patience, signal)]);
    this.#rung = false;
  }
}

/** Listens to the live stream whenever the page can be seen, until the signal or the bell's end. */
export async function keepListening(parameters, signal, bell) {
  const over = AbortSignal.any([signal, bell.signal]);
  while (!over.aborted) {
    // A stream holds one of the few connections that a browser makes to one service.
    const hidden = new AbortController();
    const hide = () => document.hidden && hidden.abort();
    document.addEventListener("visibilitychange", hide);
    try {
      await seen(over);
      await listen(parameters, AbortSignal.any([over, hidden.signal]), bell);
    } catch {
      // It is tried again below; until then the bell is not needed.
    } finally {
      document.removeEventListener("visibilitychange", hide);
    }
    bell.deaf();
    await pause(RETRY, over).catch(() => {});
  }
}

/** Resolves when the page can be seen, at once if it can. */
export async function seen(signal) {
  while (document.hidden) {
    await new Promise((resolve, reject) => {
      document.addEventListener("visibilitychange", resolve, { once: true });
      signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    });
  }
}

/** Resolves after so many milliseconds; rejects as `fetch` does when the signal comes first. */
export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const timer = setTimeout(done, milliseconds);
    function done() {
      signal.removeEventListener("abort", abort);
      resolve();
    }
    function abort() {
      clearTimeout(timer);
      reject(signal.reason);
    }
    signal.addEventListener("abort", abort, { once: true });
  });
}
