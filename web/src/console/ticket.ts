// A ticket opens one console once, within seconds. Its 32 bytes go to the host that shows the console and nowhere else:
// the job carries their hash, and the WebSocket carries them as the name of a protocol, which no log keeps.
import * as api from "../data/api";
import { outcome } from "../data/activity";
import type { Guest } from "../data/model";

export type Kind = "vnc" | "serial";

export interface Door {
  url: string;
  protocols: string[];
}

const PATIENCE = 3000; // milliseconds; the job is quick, and its record may be late

export function hex(bytes: Uint8Array): string {
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function base64url(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes))
    .replaceAll("+", "-")
    .replaceAll("/", "_")
    .replaceAll("=", "");
}

export function door(page: { protocol: string; host: string }, host: string, ticket: Uint8Array): Door {
  const scheme = page.protocol === "http:" ? "ws:" : "wss:";
  return {
    url: `${scheme}//${page.host}/websockify/${encodeURIComponent(host)}`,
    protocols: ["binary", `ticket.${base64url(ticket)}`],
  };
}

/** Has the guest's host open a door for this page alone. */
export async function opened(guest: Guest, kind: Kind): Promise<Door> {
  const ticket = crypto.getRandomValues(new Uint8Array(32));
  const hash = hex(new Uint8Array(await crypto.subtle.digest("SHA-256", ticket)));
  const jid = await api.start(guest.host, "wsproxy.start", { guest: guest.name, kind, hash });
  const found = await outcome(jid, guest.host, PATIENCE);
  if (found?.success === false) throw new Error(found.comment || "The host refused to open the console.");
  return door(window.location, guest.host, ticket);
}
