// Who is logged in. The token is in memory and in the storage of this tab alone, and in no address.
import { signal } from "@preact/signals";
import { record, text } from "./model";

export interface Session {
  user: string;
  token: string;
}

const KEY = "hypervisor-session";

function stored(): Session | null {
  try {
    const raw = record(JSON.parse(sessionStorage.getItem(KEY) ?? "null"));
    const session = { user: text(raw.user), token: text(raw.token) };
    return session.token ? session : null;
  } catch {
    return null;
  }
}

export const session = signal<Session | null>(stored());
/** A login that was good and is not any more: the page stays as it is and asks for the password. */
export const expired = signal(false);

const forgetters: (() => void)[] = [];

/** Has something forgotten when a user leaves: what one has seen and begun is nothing to the next at the same page. */
export function whenLeft(forgotten: () => void): void {
  forgetters.push(forgotten);
}

function left(): void {
  for (const forgotten of forgetters) forgotten();
}

export function begin(next: Session): void {
  if (session.value !== null && session.value.user !== next.user) left();
  session.value = next;
  expired.value = false;
  try {
    sessionStorage.setItem(KEY, JSON.stringify(next));
  } catch {
    // Without storage the login ends with a reload, and no sooner.
  }
}

export function expire(): void {
  if (session.value !== null) expired.value = true;
  forget();
}

export function end(): void {
  left();
  session.value = null;
  expired.value = false;
  forget();
}

function forget(): void {
  try {
    sessionStorage.removeItem(KEY);
  } catch {
    // Nothing was stored then.
  }
}
