// What the inventory says, as types, and reading it from JSON. Texts in it come from guests and hosts: hostile.

export interface Host {
  name: string;
  live: boolean;
  seen: string | null;
  cpus: number | null;
  cpu_used: number | null;
  memory_mib: number | null;
  memory_used_mib: number | null;
  load: number | null;
  problems: string[];
  versions: Record<string, string>;
  /** Whether its guests were moved away, and nothing new comes to it. */
  evacuated: Evacuated | null;
}

export interface Evacuated {
  since: string;
  user: string;
  guests: number;
}

export interface Guest {
  key: string;
  host: string;
  uuid: string;
  name: string;
  state: string;
  cpus: number | null;
  memory_mib: number | null;
  addresses: string[];
  started: string | null;
  autostart: boolean;
  persistent: boolean;
  consoles: string[];
  /** When something happened to it last, in milliseconds since 1970. */
  happened: number | null;
  /** What is looked through when one types: made with the record, and not at the first key for all of them. */
  search: string;
}

export interface Happened {
  at: string;
  host: string;
  what: string;
}

export interface Pool {
  host: string;
  name: string;
  state: string;
  type: string;
  capacity_bytes: number | null;
  available_bytes: number | null;
}

export interface Network {
  host: string;
  name: string;
  state: string;
  bridge: string;
  mode: string;
}

export interface Reason {
  check: string;
  text: string;
}

export interface Outcome {
  success: boolean;
  state: string;
  comment: string;
  possible: boolean | null;
  reasons: Reason[];
}

/** What a job of the master's runner has done with one guest so far. */
export interface Step {
  guest: string;
  step: string;
  from: string;
  to: string;
  text: string;
  /** Reasons by host. */
  against: Record<string, string[]>;
}

export interface Job {
  jid: string;
  user: string;
  function: string;
  guest: string;
  hosts: string[];
  started: string | null;
  kwarg: Record<string, unknown>;
  outcomes: Record<string, Outcome>;
  /** Of a job of the runner; it has one outcome for all hosts. */
  progress: Step[];
  outcome: Outcome | null;
}

export interface Tables {
  hosts: Host;
  guests: Guest;
  pools: Pool;
  networks: Network;
  jobs: Job;
}

export type TableName = keyof Tables;
export type Inventory = { [Name in TableName]: Map<string, Tables[Name]> };
export const TABLES: readonly TableName[] = ["hosts", "guests", "pools", "networks", "jobs"];

export interface User {
  name: string;
  functions: Record<string, string[]>;
}

export interface Snapshot {
  revision: number;
  user: User;
  tables: Inventory;
}

export interface Change {
  revision: number;
  set: Partial<Record<TableName, Record<string, unknown>>>;
  gone: Partial<Record<TableName, string[]>>;
}

type Raw = Record<string, unknown>;

export function record(value: unknown): Raw {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Raw) : {};
}

export function text(value: unknown): string {
  if (typeof value === "string") return value;
  return typeof value === "number" || typeof value === "boolean" ? String(value) : "";
}

function number(value: unknown): number | null {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

function texts(value: unknown): string[] {
  return Array.isArray(value) ? value.map(text).filter((one) => one !== "") : [];
}

function orNull(value: unknown): string | null {
  return typeof value === "string" && value !== "" ? value : null;
}

/** libvirt's words and those of hypervisor.* for the same states differ in a space. */
export function stateWord(value: unknown): string {
  return text(value).replaceAll("_", " ") || "unknown";
}

function readEvacuated(value: unknown): Evacuated | null {
  if (typeof value !== "object" || value === null) return null;
  const raw = record(value);
  return { since: text(raw.since), user: text(raw.user), guests: number(raw.guests) ?? 0 };
}

function readHost(key: string, raw: Raw): Host {
  const versions: Record<string, string> = {};
  for (const [name, value] of Object.entries(record(raw.versions))) versions[name] = text(value);
  return {
    name: key,
    live: raw.live === true,
    seen: orNull(raw.seen),
    cpus: number(raw.cpus),
    cpu_used: number(raw.cpu_used),
    memory_mib: number(raw.memory_mib),
    memory_used_mib: number(raw.memory_used_mib),
    load: number(raw.load),
    problems: texts(raw.problems),
    versions,
    evacuated: readEvacuated(raw.evacuated),
  };
}

/** Returns the text in which what one types is looked for, in small letters. */
export function searchable(guest: Omit<Guest, "search">): string {
  return [guest.name, guest.state, guest.host, ...guest.addresses, guest.uuid].join("\n").toLowerCase();
}

function readGuest(key: string, raw: Raw): Guest {
  const found: Guest = {
    key,
    host: text(raw.host) || key.slice(0, Math.max(0, key.lastIndexOf("/"))),
    uuid: text(raw.uuid) || key.slice(key.lastIndexOf("/") + 1),
    name: text(raw.name),
    state: stateWord(raw.state),
    cpus: number(raw.cpus),
    memory_mib: number(raw.memory_mib),
    addresses: texts(raw.addresses),
    started: orNull(raw.started),
    autostart: raw.autostart === true,
    persistent: raw.persistent !== false,
    consoles: texts(raw.consoles),
    happened: number(raw.happened),
    search: "",
  };
  // Set, and not copied with it into another object: ten thousand of those are several times as slow to look through.
  found.search = searchable(found);
  return found;
}

export function readEvents(value: unknown): Happened[] {
  const { events } = record(value);
  if (!Array.isArray(events)) return [];
  return events.map(record).map((raw) => ({ at: text(raw.at), host: text(raw.host), what: text(raw.what) }));
}

function readPool(_: string, raw: Raw): Pool {
  return {
    host: text(raw.host),
    name: text(raw.name),
    state: stateWord(raw.state),
    type: text(raw.type),
    capacity_bytes: number(raw.capacity_bytes),
    available_bytes: number(raw.available_bytes),
  };
}

function readNetwork(_: string, raw: Raw): Network {
  return {
    host: text(raw.host),
    name: text(raw.name),
    state: stateWord(raw.state),
    bridge: text(raw.bridge),
    mode: text(raw.mode),
  };
}

export function readReasons(value: unknown): Reason[] {
  if (!Array.isArray(value)) return [];
  return value.map((one) => ({ check: text(record(one).check), text: text(record(one).text) }));
}

function readOutcome(value: unknown): Outcome {
  const raw = record(value);
  return {
    success: raw.success === true,
    state: text(raw.state),
    comment: text(raw.comment),
    possible: typeof raw.possible === "boolean" ? raw.possible : null,
    reasons: readReasons(raw.reasons),
  };
}

function readStep(value: unknown): Step {
  const raw = record(value);
  const against: Record<string, string[]> = {};
  for (const [host, reasons] of Object.entries(record(raw.against))) against[host] = texts(reasons);
  return {
    guest: text(raw.guest),
    step: text(raw.step),
    from: text(raw.from),
    to: text(raw.to) || text(raw.host),
    text: text(raw.text),
    against,
  };
}

function readJob(key: string, raw: Raw): Job {
  const outcomes: Record<string, Outcome> = {};
  for (const [host, value] of Object.entries(record(raw.outcomes))) outcomes[host] = readOutcome(value);
  return {
    jid: text(raw.jid) || key,
    user: text(raw.user),
    function: text(raw.function),
    guest: text(raw.guest),
    hosts: texts(raw.hosts),
    started: orNull(raw.started),
    kwarg: record(raw.kwarg),
    outcomes,
    progress: Array.isArray(raw.progress) ? raw.progress.map(readStep) : [],
    outcome: raw.outcome ? readOutcome(raw.outcome) : null,
  };
}

const READERS: { [Name in TableName]: (key: string, raw: Raw) => Tables[Name] } = {
  hosts: readHost,
  guests: readGuest,
  pools: readPool,
  networks: readNetwork,
  jobs: readJob,
};

export function empty(): Inventory {
  return { hosts: new Map(), guests: new Map(), pools: new Map(), networks: new Map(), jobs: new Map() };
}

function readTable<Name extends TableName>(name: Name, value: unknown): Map<string, Tables[Name]> {
  const reader = READERS[name];
  return new Map(Object.entries(record(value)).map(([key, raw]) => [key, reader(key, record(raw))]));
}

export function readSnapshot(value: unknown): Snapshot {
  const raw = record(value);
  const user = record(raw.user);
  const functions: Record<string, string[]> = {};
  for (const [host, names] of Object.entries(record(user.functions))) functions[host] = texts(names);
  return {
    revision: number(raw.revision) ?? 0,
    user: { name: text(user.name), functions },
    tables: {
      hosts: readTable("hosts", raw.hosts),
      guests: readTable("guests", raw.guests),
      pools: readTable("pools", raw.pools),
      networks: readTable("networks", raw.networks),
      jobs: readTable("jobs", raw.jobs),
    },
  };
}

export function readChange(value: unknown): Change {
  const raw = record(value);
  const change: Change = { revision: number(raw.revision) ?? 0, set: {}, gone: {} };
  for (const name of TABLES) {
    const set = record(raw.set)[name];
    if (set !== undefined) change.set[name] = record(set);
    const gone = record(raw.gone)[name];
    if (gone !== undefined) change.gone[name] = texts(gone);
  }
  return change;
}

function applyTable<Name extends TableName>(
  name: Name,
  table: Map<string, Tables[Name]>,
  change: Change,
): Map<string, Tables[Name]> {
  const set = change.set[name];
  const gone = change.gone[name];
  if (!set && !gone) return table;
  const next = new Map(table);
  for (const key of gone ?? []) next.delete(key);
  for (const [key, raw] of Object.entries(set ?? {})) next.set(key, READERS[name](key, record(raw)));
  return next;
}

/** Returns the inventory after a change; a table that the change does not touch stays the same object. */
export function applied(tables: Inventory, change: Change): Inventory {
  return {
    hosts: applyTable("hosts", tables.hosts, change),
    guests: applyTable("guests", tables.guests, change),
    pools: applyTable("pools", tables.pools, change),
    networks: applyTable("networks", tables.networks, change),
    jobs: applyTable("jobs", tables.jobs, change),
  };
}
