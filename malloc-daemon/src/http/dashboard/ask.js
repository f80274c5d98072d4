// Asks the daemon, with the token that this tab holds.

const KEPT = "malloc-daemon token";
/** Milliseconds after which an answer is no longer waited for. */
const PATIENCE = 20000;

/** The daemon wants a token, or another one. */
export class Unauthorized extends Error {}
/** What was asked for is not there. */
export class Missing extends Error {}

export function hasToken() {
  return sessionStorage.getItem(KEPT) !== null;
}

export function keepToken(token) {
  sessionStorage.setItem(KEPT, token);
}

export function forgetToken() {
  sessionStorage.removeItem(KEPT);
}

/** A document of the daemon. */
export async function ask(path) {
  const token = sessionStorage.getItem(KEPT);
  const headers = token === null ? {} : { Authorization: `Bearer ${token}` };
  const signal = AbortSignal.timeout(PATIENCE);
  const answer = await fetch(path, { headers, signal, cache: "no-store", credentials: "omit", redirect: "error" });
  if (answer.status === 401) throw new Unauthorized();
  const body = await answer.json();
  if (answer.status === 404) throw new Missing(body.error.message);
  if (!answer.ok) throw new Error(body.error.message);
  return body;
}
