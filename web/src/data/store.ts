// The inventory as it is now, kept fresh by the stream. A lost connection keeps what was there and says so.
import { batch, computed, effect, signal, untracked } from "@preact/signals";
import * as api from "./api";
import { applied, empty, readChange, type Guest, type Inventory, type User } from "./model";
import { expired, session, whenLeft } from "./session";
import { EventReader, type ServerEvent } from "./sse";

export type Connection = "idle" | "connecting" | "live" | "lost";

export const tables = signal<Inventory>(empty());
export const user = signal<User>({ name: "", functions: {} });
export const connection = signal<Connection>("idle");
/** When what is shown was last known to be true, and when the next attempt is, in milliseconds since 1970. */
export const freshAt = signal(0);
export const retryAt = signal(0);
export const loaded = signal(false);
/** The time of this page, once a second: for what says how long something has been so. */
export const now = signal(Date.now());

export const hosts = computed(() => [...tables.value.hosts.values()].sort((a, b) => (a.name < b.name ? -1 : 1)));
export const guests = computed(() => [...tables.value.guests.values()]);
export const guestsByHost = computed(() => {
  const found = new Map<string, Guest[]>();
  for (const guest of guests.value) {
    const list = found.get(guest.host);
    if (list) list.push(guest);
    else found.set(guest.host, [guest]);
  }
  return found;
});

/** Whether the user's roles let him call a function on a host. */
export function may(host: string, verb: string): boolean {
  const allowed = user.value.functions[host];
  return allowed?.includes(verb.includes(".") ? verb : `hypervisor.${verb}`) ?? false;
}

/**
 * Finds a guest wherever it is: the one that runs, while two hosts know it during a migration. What a host told that is
 * not heard any more counts only where no other one has it: a cluster has started the guest elsewhere since.
 */
export function guestByUuid(uuid: string): Guest | undefined {
  const all = guests.value.filter((guest) => guest.uuid === uuid);
  const heard = all.filter((guest) => tables.value.hosts.get(guest.host)?.live);
  const found = heard.length > 0 ? heard : all;
  return found.find((guest) => guest.state === "running") ?? found.find((guest) => guest.persistent) ?? found[0];
}

const SILENCE = 40_000; // milliseconds; the server says something every 15 seconds
const [FIRST_WAIT, LONGEST_WAIT] = [500, 15_000];

let revision = 0;
let attempt: AbortController | null = null;
let wake: (() => void) | null = null;
let round = 0;

function take(event: ServerEvent): boolean {
  if (event.event === "resync") return false;
  if (event.event !== "change") return true;
  const change = readChange(JSON.parse(event.data));
  // Sent again after a reconnect: what is older than what is shown would bring back the past.
  if (change.revision <= revision && change.revision !== 0) return true;
  revision = change.revision;
  tables.value = applied(tables.value, change);
  return true;
}

async function resync(): Promise<void> {
  const asked = session.peek()?.token;
  const snapshot = await api.snapshot();
  // It is what another login may see, if that has come between.
  if (session.peek()?.token !== asked) return;
  batch(() => {
    revision = snapshot.revision;
    tables.value = snapshot.tables;
    user.value = snapshot.user;
    loaded.value = true;
    freshAt.value = Date.now();
  });
}

/** Follows the stream until it ends. */
async function follow(control: AbortController): Promise<void> {
  const seen = { stale: false };
  const reader = new EventReader((event) => {
    if (!take(event)) seen.stale = true;
  });
  const response = await api.stream(revision, control.signal);
  const body = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  if (!body) return;
  connection.value = "live";
  for (;;) {
    let timer = 0;
    const silence = new Promise<never>((_, reject) => {
      timer = window.setTimeout(() => reject(new Error("silence")), SILENCE);
    });
    const { done, value } = await Promise.race([body.read(), silence]).finally(() => window.clearTimeout(timer));
    if (done) return;
    freshAt.value = Date.now();
    batch(() => reader.feed(value));
    if (seen.stale) {
      seen.stale = false;
      await resync();
    }
  }
}

async function run(mine: number): Promise<void> {
  let wait = FIRST_WAIT;
  const current = () => mine === round && session.value !== null && !expired.value;
  while (current()) {
    const control = new AbortController();
    attempt = control;
    if (connection.value !== "lost") connection.value = "connecting";
    const began = Date.now();
    try {
      await resync();
      await follow(control);
    } catch {
      // Whatever it was, what is shown is not live any more; a wrong token ends the loop by itself.
    }
    control.abort();
    if (!current()) break;
    if (Date.now() - began > LONGEST_WAIT) wait = FIRST_WAIT;
    batch(() => {
      connection.value = "lost";
      retryAt.value = Date.now() + wait;
    });
    const pause = wait;
    await new Promise<void>((resolve) => {
      wake = resolve;
      window.setTimeout(resolve, pause);
    });
    wait = Math.min(LONGEST_WAIT, wait * 2);
  }
  if (mine === round) connection.value = session.value === null ? "idle" : "lost";
}

/** Tries again at once. */
export function retry(): void {
  wake?.();
}

/** Keeps the inventory fresh for as long as the page lives. */
export function keep(): void {
  window.setInterval(() => (now.value = Date.now()), 1000);
  window.addEventListener("online", retry);
  effect(() => {
    const active = session.value !== null && !expired.value;
    round += 1;
    attempt?.abort();
    wake?.();
    const loggedOut = session.value === null;
    untracked(() => (active ? void run(round) : stop(loggedOut)));
  });
}

function stop(loggedOut: boolean): void {
  connection.value = loggedOut ? "idle" : "lost";
}

whenLeft(() => {
  batch(() => {
    revision = 0;
    tables.value = empty();
    user.value = { name: "", functions: {} };
    loaded.value = false;
  });
});
