/** Calls of the API, and elements of the page. */

export const $ = (id) => document.getElementById(id);

/** An error of the service, with its status. */
export class ServiceError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** The JSON of an answer, or its text. Throws a ServiceError that says what the service said. */
export async function call(path, options = {}) {
  const headers = { ...(options.body ? { "Content-Type": "application/json" } : {}) };
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 204) return null;
  const text = await answer.text();
  if (path === "metrics" && answer.ok) return text;
  let body;
  try { body = JSON.parse(text); } catch { body = { error: text.slice(0, 200) }; }
  if (!answer.ok) {
    const message = body.where ? `${body.where}: ${body.error}` : body.error;
    const needsKey = answer.status === 401 || answer.status === 403;
    throw new ServiceError(needsKey ? `${message}; type a key that may do this at the top` : message, answer.status);
  }
  return body;
}

export const post = (path, body) => call(path, { method: "POST", body: body && JSON.stringify(body) });

export function element(name, text = "", className = "") {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  if (className) made.className = className;
  return made;
}

/** A probability as people read it: 23 %, 0.4 %, 0.0021 %. */
export function percent(share) {
  const value = 100 * share;
  if (value === 0) return "0 %";
  if (value >= 9.95) return `${value.toFixed(0)} %`;
  return value >= 1e-4 ? `${Number(value.toPrecision(2))} %` : `${value.toExponential(0)} %`;
}
