// The bridges of hosts that a new guest may be put on, and what is to be said of hosts whose bridges are not known.
import { record, text } from "./model";

export interface Bridge {
  name: string;
  host: string;
}

/** What one host has answered: its bridges, or why they are not known. */
export type Answer = { bridges: readonly Bridge[] } | { why: string };

export type Answers = Readonly<Record<string, Answer>>;

export const MOST_ASKED = 8; // hosts that are asked for their bridges
const LONGEST = 200; // characters of a reason

/** Reads hypervisor.host_info: the bridges of a host that are no network of libvirt's. */
export function bridgesIn(host: string, told: unknown, ofNetworks: ReadonlySet<string>): Answer {
  const { bridges } = record(told);
  if (!Array.isArray(bridges)) return { why: `${host} does not tell them.` };
  const names = bridges.map((one) => text(record(one).name)).filter((name) => name !== "" && !ofNetworks.has(name));
  return { bridges: names.map((name) => ({ name, host })) };
}

/** Returns why nothing is known of a host that has not answered, in one line. */
export function unread(error: unknown): Answer {
  const said = (error instanceof Error ? error.message : String(error)).trim();
  const [line = ""] = said.split("\n");
  return { why: line.slice(0, LONGEST) || "no reason was given." };
}

/** In the order of the hosts, and not in that in which they have answered. */
function ordered(answers: Answers): [string, Answer][] {
  return Object.entries(answers).sort(([one], [other]) => (one < other ? -1 : 1));
}

/** The bridges that are known, and the hosts of which they are. */
export function known(answers: Answers): { bridges: Bridge[]; hosts: string[] } {
  const told = ordered(answers).flatMap(([host, one]) => ("bridges" in one ? [{ host, bridges: one.bridges }] : []));
  return { bridges: told.flatMap((one) => one.bridges), hosts: told.map((one) => one.host) };
}

/** Says at the field which bridges are not offered although they may be there; nothing if there are none such. */
export function unoffered(answers: Answers, places: readonly string[]): string {
  const said = ordered(answers).flatMap(([host, one]) =>
    "why" in one ? [`The bridges of ${host} could not be read: ${one.why}`] : [],
  );
  if (places.length > MOST_ASKED) {
    said.push(`Of ${places.length} hosts only ${places.slice(0, MOST_ASKED).join(", ")} were asked for their bridges.`);
  }
  return said.join("\n");
}
