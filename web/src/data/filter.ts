// Which guests a table shows, and in which order. Runs at every key press, over ten thousand guests.
import type { Guest } from "./model";

export type Column = "name" | "state" | "host" | "address" | "cpus" | "memory" | "uptime";

export interface Order {
  column: Column;
  descending: boolean;
}

type Guests = readonly Guest[];

/** Returns those guests in which every word occurs: the list itself if that is all of them. */
export function filtered(guests: Guests, typed: string): Guests {
  const words = typed.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0) return guests;
  const found = guests.filter((guest) => words.every((word) => guest.search.includes(word)));
  return found.length === guests.length ? guests : found;
}

/**
 * Returns a function that filters like `filtered`, and remembers the last time. What is typed on is looked for among what
 * was found before; a list that has the same guests is the same list, so that nothing is drawn again for it.
 */
export function filtering(): (guests: Guests, typed: string) => Guests {
  let last: { guests: Guests; typed: string; found: Guests } = { guests: [], typed: "", found: [] };
  return (guests, typed) => {
    const same = last.guests === guests;
    let found = filtered(same && typed.startsWith(last.typed) ? last.found : guests, typed);
    // Whatever is found with more typed is found with less too.
    if (same && last.typed.startsWith(typed) && found.length === last.found.length) found = last.found;
    last = { guests, typed, found };
    return found;
  };
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
