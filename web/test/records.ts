// Records for tests.
import { empty, searchable, type Guest, type Host, type Inventory, type Job } from "../src/data/model";

let count = 0;

export function guest(part: Partial<Guest>): Guest {
  count += 1;
  const uuid = part.uuid ?? `uuid-${count}`;
  const host = part.host ?? "hv1";
  const found = {
    key: `${host}/${uuid}`,
    host,
    uuid,
    name: `guest${count}`,
    state: "running",
    cpus: 1,
    memory_mib: 512,
    addresses: [],
    started: null,
    autostart: false,
    persistent: true,
    consoles: ["vnc", "serial"],
    happened: null,
    ...part,
  };
  return { ...found, search: searchable(found) };
}

export function host(name: string, part: Partial<Host> = {}): Host {
  return {
    name,
    live: true,
    seen: "2026-11-28T12:00:00Z",
    cpus: 4,
    cpu_used: 0.2,
    memory_mib: 8192,
    memory_used_mib: 2048,
    load: 0.5,
    problems: [],
    versions: {},
    evacuated: null,
    ...part,
  };
}

export function job(jid: string, part: Partial<Job> = {}): Job {
  return {
    jid,
    user: "otto",
    function: "hypervisor.start",
    guest: "web1",
    hosts: ["hv1"],
    started: "2026-11-28T12:00:00Z",
    kwarg: {},
    outcomes: {},
    progress: [],
    outcome: null,
    ...part,
  };
}

export function inventory(hosts: Host[], guests: Guest[] = [], jobs: Job[] = []): Inventory {
  return {
    ...empty(),
    hosts: new Map(hosts.map((one) => [one.name, one])),
    guests: new Map(guests.map((one) => [one.key, one])),
    jobs: new Map(jobs.map((one) => [one.jid, one])),
  };
}
