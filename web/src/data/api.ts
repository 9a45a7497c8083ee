// The requests to salt-api. Everything that changes something is a job: its number comes back at once, and what became
// of it comes with the inventory.
import { readEvents, readSnapshot, record, text, type Happened, type Snapshot } from "./model";
import { begin, end, expire, session } from "./session";

export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message);
  }
}

const PATIENCE = 30_000; // milliseconds

function headers(): Record<string, string> {
  const token = session.value?.token;
  return { Accept: "application/json", ...(token ? { "X-Auth-Token": token } : {}) };
}

async function answered(path: string, init: RequestInit): Promise<Response> {
  const asked = session.value?.token;
  let response: Response;
  try {
    response = await fetch(path, {
      credentials: "omit",
      cache: "no-store",
      signal: AbortSignal.timeout(PATIENCE),
      ...init,
    });
  } catch {
    throw new ApiError("The server does not answer.", 0);
  }
  if (response.status === 401 && path !== "/api/login") {
    // Another login may have come between.
    if (session.value?.token === asked) expire();
    throw new ApiError("The login has expired.", 401);
  }
  return response;
}

async function message(response: Response): Promise<string> {
  try {
    return text(record(await response.json()).error);
  } catch {
    return "";
  }
}

async function posted(path: string, body: unknown): Promise<unknown> {
  const response = await answered(path, {
    method: "POST",
    headers: { ...headers(), "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  if (!response.ok) {
    const said = await message(response);
    throw new ApiError(said || `The server refused the request (${response.status}).`, response.status);
  }
  return response.json();
}

export async function login(username: string, password: string): Promise<void> {
  let answer: unknown;
  try {
    answer = await posted("/api/login", { username, password });
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) throw new ApiError("Name or password is wrong.", 401);
    if (error instanceof ApiError && (error.status === 429 || error.status === 503)) {
      throw new ApiError("Too many attempts. Wait a minute, then try again.", error.status);
    }
    throw error;
  }
  const list = record(answer).return;
  const token = text(record(Array.isArray(list) ? list[0] : undefined).token);
  if (!token) throw new ApiError("The server's answer is not a login.", 0);
  begin({ user: username, token });
}

export async function logout(): Promise<void> {
  const asked = posted("/api/logout", {});
  // Not when the server answers, which may be never: the token ends by itself, and here it is forgotten in any case.
  end();
  await asked.catch(() => undefined);
}

async function started(request: Record<string, unknown>, otherwise: string): Promise<string> {
  const list = record(await posted("/api/run", request)).return;
  const jid = text(record(Array.isArray(list) ? list[0] : undefined).jid);
  if (!jid) throw new ApiError(otherwise, 0);
  return jid;
}

/** Starts a job on one host and returns its number. */
export function start(host: string, fun: string, kwarg: Record<string, unknown>): Promise<string> {
  return started({ client: "local_async", tgt: [host], fun, kwarg }, `${host} is not there.`);
}

/** Starts a job of the master's runner, which acts on several hosts, and returns its number. */
export function startFleet(fun: string, kwarg: Record<string, unknown>): Promise<string> {
  return started({ client: "runner_async", fun, kwarg }, "The master did not start the job.");
}

/** Asks one host something that changes nothing, and waits for the answer. */
export async function ask(host: string, fun: string, kwarg: Record<string, unknown> = {}): Promise<unknown> {
  const answer = await posted("/api/run", { client: "local", tgt: [host], fun, kwarg });
  const list = record(answer).return;
  const value = record(Array.isArray(list) ? list[0] : undefined)[host];
  if (value === undefined || value === false) throw new ApiError(`${host} does not answer.`, 0);
  if (typeof value === "string") throw new ApiError(value, 0);
  return value;
}

export async function snapshot(): Promise<Snapshot> {
  const response = await answered("/inventory/snapshot", { headers: headers() });
  if (!response.ok) throw new ApiError(`The inventory does not answer (${response.status}).`, response.status);
  return readSnapshot(await response.json());
}

/** What has happened to a guest, the newest first. */
export async function events(uuid: string): Promise<Happened[]> {
  const response = await answered(`/inventory/events/${encodeURIComponent(uuid)}`, { headers: headers() });
  if (!response.ok) throw new ApiError(`The inventory does not answer (${response.status}).`, response.status);
  return readEvents(await response.json());
}

export async function stream(last: number, until: AbortSignal): Promise<Response> {
  const response = await answered("/inventory/stream", {
    headers: { ...headers(), Accept: "text/event-stream", "Last-Event-ID": String(last) },
    signal: until,
  });
  if (!response.ok || !response.body) {
    throw new ApiError(`The inventory does not answer (${response.status}).`, response.status);
  }
  return response;
}
