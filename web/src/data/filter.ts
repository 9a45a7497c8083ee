// Which guests a table shows, and in which order. Runs at every key press, over ten thousand guests.
import type { Guest } from "./model";

export type Column = "name" | "state" | "host" | "address" | "cpus" | "memory" | "uptime";

export interface Order {
  column: Column;
  descending: boolean;
}

// What is typed is looked for in this text; made once for each record, which is replaced when the guest changes.
const haystacks = new WeakMap<Guest, string>();

function haystack(guest: Guest): string {
  let found = haystacks.get(guest);
  if (found === undefined) {
    found = [guest.name, guest.state, guest.host, ...guest.addresses, guest.uuid].join("\n").toLowerCase();
    haystacks.set(guest, found);
  }
  return found;
}

/** Returns those guests in which every word occurs. */
export function filtered(guests: readonly Guest[], typed: string): Guest[] {
  const words = typed.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0) return [...guests];
  return guests.filter((guest) => {
    const searched = haystack(guest);
    return words.every((word) => searched.includes(word));
  });
}

// Numbers in a text compare as numbers when all have the same length. Comparing by the rules of a language would be as good,
// and far too slow for each event of ten thousand guests.
const naturals = new Map<string, string>();
const MOST = 100_000;

function natural(text: string): string {
  let found = naturals.get(text);
  if (found === undefined) {
    if (naturals.size >= MOST) naturals.clear();
    found = text.toLowerCase().replace(/\d+/g, (digits) => digits.padStart(12, "0"));
    naturals.set(text, found);
  }
  return found;
}

type Key = string | number;

const KEYS: Record<Column, (guest: Guest) => Key> = {
  name: (guest) => natural(guest.name),
  state: (guest) => guest.state,
  host: (guest) => natural(guest.host),
  address: (guest) => natural(guest.addresses[0] ?? ""),
  cpus: (guest) => guest.cpus ?? -1,
  memory: (guest) => guest.memory_mib ?? -1,
  // The longer it runs, the earlier it was started; one that does not run comes before all.
  uptime: (guest) => (guest.started === null ? -Infinity : -(Date.parse(guest.started) || Infinity)),
};

/** Returns guests in order; equals are ordered by name, and then by where they are. */
export function sorted(guests: readonly Guest[], order: Order): Guest[] {
  const of = KEYS[order.column];
  const sign = order.descending ? -1 : 1;
  const rows = guests.map((guest) => ({ guest, key: of(guest), name: natural(guest.name) }));
  rows.sort((one, other) => {
    if (one.key !== other.key) return one.key < other.key ? -sign : sign;
    if (one.name !== other.name) return one.name < other.name ? -1 : 1;
    return one.guest.key < other.guest.key ? -1 : 1;
  });
  return rows.map((row) => row.guest);
}
