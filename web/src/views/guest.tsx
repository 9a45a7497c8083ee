// One guest: its console, what can be done to it, what it is made of, and what was done to it.
import { useEffect, useRef, useState } from "preact/hooks";
import * as api from "../data/api";
import { offered } from "../data/actions";
import { bytes, mib, since } from "../data/format";
import { concerns, newestFirst } from "../data/jobs";
import { record, text, type Guest } from "../data/model";
import { guestByUuid, hosts, loaded, may, now, tables } from "../data/store";
import { Console, mayOpen } from "../console/console";
import { Empty, Facts, State } from "../parts/basics";
import { beginAction } from "../parts/doing";
import { Events } from "../parts/events";
import { JobRows } from "./jobs";

function Toolbar({ guest }: { guest: Guest }) {
  return (
    <div class="actions" role="group" aria-label={`Actions for ${guest.name}`}>
      {offered(guest, may, hosts.value.length).map((action) => (
        <button
          key={action.verb}
          type="button"
          class={action.danger ? "danger" : ""}
          onClick={() => beginAction(action, guest)}
        >
          {action.label}
        </button>
      ))}
    </div>
  );
}

interface Parts {
  disks: { target: string; what: string; size: string }[];
  nics: { what: string; mac: string; addresses: string }[];
  facts: (readonly [string, string])[];
}

function rows(value: unknown): Record<string, unknown>[] {
  return Array.isArray(value) ? value.map(record) : [];
}

function understood(value: unknown): Parts {
  const raw = record(value);
  const size = (amount: unknown) => (typeof amount === "number" ? bytes(amount) : "");
  return {
    disks: rows(raw.disks).map((disk) => ({
      target: text(disk.target),
      what: text(disk.source) || `empty ${text(disk.device)}`,
      size: [text(disk.format), size(disk.capacity_bytes)].filter(Boolean).join(", "),
    })),
    nics: rows(raw.nics).map((nic) => ({
      what: [text(nic.type), text(nic.source), text(nic.model)].filter(Boolean).join(" "),
      mac: text(nic.mac),
      addresses: Array.isArray(nic.addresses) ? nic.addresses.map(text).join(", ") : "",
    })),
    facts: (
      [
        ["Title", text(raw.title)],
        ["Machine", [text(raw.machine), text(raw.architecture), text(raw.domain_type)].filter(Boolean).join(", ")],
        ["Firmware", text(raw.firmware)],
        ["CPUs at most", text(raw.vcpus_max)],
        ["Memory at most", typeof raw.memory_max_mib === "number" ? mib(raw.memory_max_mib) : ""],
      ] as const
    ).filter(([, said]) => said !== ""),
  };
}

function Made({ guest }: { guest: Guest }) {
  const [parts, setParts] = useState<Parts | null>(null);
  const [wrong, setWrong] = useState("");
  useEffect(() => {
    let mine = true;
    setWrong("");
    api.ask(guest.host, "hypervisor.guest", { name: guest.name }).then(
      (value) => mine && setParts(understood(value)),
      (error: unknown) => mine && setWrong(error instanceof Error ? error.message : String(error)),
    );
    return () => {
      mine = false;
    };
  }, [guest.host, guest.name, guest.state, guest.cpus, guest.memory_mib]);
  if (wrong) return <p class="wrong lines">{wrong}</p>;
  if (!parts) return <p class="hint">Asking {guest.host}…</p>;
  return (
    <>
      <Facts rows={parts.facts} />
      <h2>Disks</h2>
      {parts.disks.length === 0 ? <Empty>None.</Empty> : null}
      {parts.disks.map((disk) => (
        <p key={disk.target} class="part">
          <b>{disk.target}</b> <span class="path">{disk.what}</span> <span class="hint">{disk.size}</span>
        </p>
      ))}
      <h2>Interfaces</h2>
      {parts.nics.length === 0 ? <Empty>None.</Empty> : null}
      {parts.nics.map((nic) => (
        <p key={nic.mac} class="part">
          <b>{nic.what}</b> <span class="path">{nic.mac}</span> <span class="hint">{nic.addresses}</span>
        </p>
      ))}
    </>
  );
}

function Summary({ guest }: { guest: Guest }) {
  return (
    <Facts
      rows={[
        ["Host", <a href={`#/host/${encodeURIComponent(guest.host)}`}>{guest.host}</a>],
        ["CPUs", guest.cpus ?? "–"],
        ["Memory", mib(guest.memory_mib)],
        ["Addresses", guest.addresses.join(", ") || "–"],
        ["Runs for", since(guest.started, now.value) || "–"],
        ["Starts with its host", guest.autostart ? "yes" : "no"],
        ["UUID", <span class="path">{guest.uuid}</span>],
      ]}
    />
  );
}

function noConsole(guest: Guest): string {
  if (!mayOpen(guest.host)) return "Your roles do not open consoles.";
  return guest.state === "running" ? "This guest has no console." : "The console comes when the guest runs.";
}

export function GuestView({ uuid }: { uuid: string }) {
  const guest = guestByUuid(uuid);
  // A guest that does not run, or is between two hosts, has none for the moment: the console stays and waits for it.
  const consoles = useRef<readonly string[]>([]);
  if (guest && guest.consoles.length > 0) consoles.current = guest.consoles;
  if (!guest) {
    return loaded.value ? <Empty>There is no such guest, or none that you may see.</Empty> : <Empty>Loading…</Empty>;
  }
  const jobs = newestFirst(tables.value.jobs.values()).filter(
    (job) => concerns(job, guest.name) && !job.function.startsWith("wsproxy."),
  );
  return (
    <div class="page page-wide">
      <div class="page-head">
        <h1>{guest.name}</h1>
        <State state={guest.state} />
        <span class="hint">on {guest.host}</span>
        <span class="spring" />
        <Toolbar guest={guest} />
      </div>
      <div class="columns">
        <section aria-label="Console" class="main-part">
          {consoles.current.length > 0 && mayOpen(guest.host) ? (
            <Console uuid={uuid} consoles={consoles.current} />
          ) : (
            <Empty>{noConsole(guest)}</Empty>
          )}
          <h2>What has happened</h2>
          <Events guest={guest} />
          <h2>What was done</h2>
          {jobs.length === 0 ? <Empty>No jobs yet.</Empty> : <JobRows jobs={jobs.slice(0, 20)} />}
        </section>
        <aside class="side">
          <h2>Summary</h2>
          <Summary guest={guest} />
          {may(guest.host, "guest") ? (
            <>
              <h2>Made of</h2>
              <Made guest={guest} />
            </>
          ) : null}
        </aside>
      </div>
    </div>
  );
}
