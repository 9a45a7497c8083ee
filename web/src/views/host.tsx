// One host: its load, its guests, pools and networks, and what it says of itself.
import { computed } from "@preact/signals";
import { useEffect, useMemo, useState } from "preact/hooks";
import * as api from "../data/api";
import { bytes, clock, duration, mib, share } from "../data/format";
import { record, text } from "../data/model";
import { guestsByHost, may, tables } from "../data/store";
import { Empty, Facts, Live, Meter } from "../parts/basics";
import { Evacuation, HostActions } from "../parts/evacuate";
import { GuestTable } from "../parts/guests";

interface Said {
  facts: (readonly [string, string])[];
  certificates: { purpose: string; days: string; problem: string }[];
  reboot: string;
}

function list(value: unknown): unknown[] {
  return Array.isArray(value) ? value : [];
}

function understood(value: unknown): Said {
  const raw = record(value);
  const [cpu, memory, versions] = [record(raw.cpu), record(raw.memory), record(raw.versions)];
  const total = Number(memory.total_mib);
  const uptime = Number(raw.uptime_seconds);
  return {
    facts: [
      ["System", text(versions.system)],
      ["Kernel", text(versions.kernel)],
      ["libvirt", text(versions.libvirt)],
      ["QEMU", text(versions.qemu)],
      ["Processor", [text(cpu.model), text(cpu.architecture)].filter(Boolean).join(", ")],
      ["CPUs", text(cpu.cpus)],
      ["Memory", Number.isFinite(total) ? mib(total) : ""],
      ["Up for", Number.isFinite(uptime) ? duration(uptime) : ""],
      ["Guests run as", list(raw.domain_types).map(text).join(", ")],
    ].filter((row): row is [string, string] => row[1] !== ""),
    certificates: list(raw.certificates).map((one) => ({
      purpose: text(record(one).purpose),
      days: text(record(one).days_left),
      problem: text(record(one).problem),
    })),
    reboot: record(raw.reboot).pending === true ? list(record(raw.reboot).why).map(text).join(", ") : "",
  };
}

function Details({ name }: { name: string }) {
  const [said, setSaid] = useState<Said | null>(null);
  const [wrong, setWrong] = useState("");
  useEffect(() => {
    let mine = true;
    setSaid(null);
    setWrong("");
    api.ask(name, "hypervisor.host_info").then(
      (value) => mine && setSaid(understood(value)),
      (error: unknown) => mine && setWrong(error instanceof Error ? error.message : String(error)),
    );
    return () => {
      mine = false;
    };
  }, [name]);
  if (wrong) return <p class="wrong lines">{wrong}</p>;
  if (!said) return <p class="hint">Asking {name}…</p>;
  return (
    <>
      {said.reboot ? <p class="notice">A reboot is due: {said.reboot}</p> : null}
      <Facts rows={said.facts} />
      <h3>Certificates</h3>
      <Facts
        rows={said.certificates.map(
          (one) => [one.purpose, one.problem || (one.days ? `${one.days} days left` : "–")] as const,
        )}
      />
    </>
  );
}

function Stock({ name }: { name: string }) {
  const pools = [...tables.value.pools.values()].filter((pool) => pool.host === name);
  const networks = [...tables.value.networks.values()].filter((network) => network.host === name);
  return (
    <>
      <h2>Storage</h2>
      {pools.length === 0 ? <Empty>No storage pool.</Empty> : null}
      {pools.map((pool) => (
        <div key={pool.name} class="pool">
          <b>{pool.name}</b> <span class="hint">{[pool.type, pool.state].filter(Boolean).join(", ")}</span>
          <Meter
            label="used"
            value={share(
              pool.capacity_bytes === null || pool.available_bytes === null
                ? null
                : pool.capacity_bytes - pool.available_bytes,
              pool.capacity_bytes,
            )}
          />
          <span class="hint">
            {bytes(pool.available_bytes)} of {bytes(pool.capacity_bytes)} free
          </span>
        </div>
      ))}
      <h2>Networks</h2>
      {networks.length === 0 ? <Empty>No virtual network.</Empty> : null}
      {networks.map((network) => (
        <p key={network.name} class="network">
          <b>{network.name}</b>{" "}
          <span class="hint">{[network.mode, network.bridge, network.state].filter(Boolean).join(", ")}</span>
        </p>
      ))}
    </>
  );
}

export function HostView({ name }: { name: string }) {
  const here = useMemo(() => computed(() => guestsByHost.value.get(name) ?? []), [name]);
  const host = tables.value.hosts.get(name);
  if (!host) return <Empty>There is no host {name} that you may see.</Empty>;
  return (
    <div class="page page-wide">
      <div class="page-head">
        <h1>{host.name}</h1>
        <Live live={host.live} />
        <span class="hint">last heard {clock(host.seen)}</span>
        <span class="spring" />
        <HostActions host={host} />
      </div>
      <Evacuation host={host} />
      {host.problems.length > 0 ? (
        <ul class="problems">
          {host.problems.map((problem, number) => (
            <li key={number} class="lines">
              {problem}
            </li>
          ))}
        </ul>
      ) : null}
      <div class="columns">
        <section class="host-guests" aria-label="Guests">
          <GuestTable source={here} label={`Guests of ${host.name}`} />
        </section>
        <aside class="side">
          <h2>Load</h2>
          <Meter label="CPU" value={host.cpu_used} />
          <Meter label="Memory" value={share(host.memory_used_mib, host.memory_mib)} />
          <p class="hint">
            load {host.load ?? "–"}, {host.cpus ?? "–"} CPUs, {mib(host.memory_used_mib)} of {mib(host.memory_mib)}
          </p>
          <Stock name={name} />
          {may(name, "host_info") ? (
            <>
              <h2>This host</h2>
              <Details name={name} />
            </>
          ) : null}
        </aside>
      </div>
    </div>
  );
}
