// Hosts with their guests and load beside one table of all guests. A guest is dragged to a host.
import { percent, share } from "../data/format";
import type { Guest, Host } from "../data/model";
import { guests, guestsByHost, hosts, loaded, may } from "../data/store";
import { Empty, Live, Meter } from "../parts/basics";
import { beginMove } from "../parts/doing";
import { dragged, endDrag, startDrag } from "../parts/drag";
import { GuestTable, typed } from "../parts/guests";
import { Virtual } from "../parts/virtual";
import { signal } from "@preact/signals";

const over = signal("");
const CHIPS = 24;

function Chip({ guest }: { guest: Guest }) {
  return (
    <a
      class={`chip chip-${guest.state.replaceAll(" ", "-")}`}
      href={`#/guest/${encodeURIComponent(guest.uuid)}`}
      draggable={may(guest.host, "migrate")}
      onDragStart={(event) => startDrag(event, guest)}
      onDragEnd={endDrag}
      title={`${guest.name}: ${guest.state}`}
    >
      {guest.name}
    </a>
  );
}

function dropClass(host: Host): string {
  const guest = dragged.value;
  if (guest === null) return "";
  if (guest.host === host.name || !host.live) return " drop-not";
  return over.value === host.name ? " drop-here" : " drop-may";
}

function HostCard({ host, index }: { host: Host; index: number }) {
  const here = guestsByHost.value.get(host.name) ?? [];
  const running = here.filter((guest) => guest.state === "running").length;
  const accepts = () => dragged.value !== null && dragged.value.host !== host.name && host.live;
  return (
    <div
      role="listitem"
      class={`host-card${host.live ? "" : " host-gone"}${dropClass(host)}`}
      data-index={index}
      data-host={host.name}
      onDragOver={(event) => {
        if (!accepts()) return;
        event.preventDefault();
        if (event.dataTransfer) event.dataTransfer.dropEffect = "move";
        over.value = host.name;
      }}
      onDragLeave={() => {
        if (over.value === host.name) over.value = "";
      }}
      onDrop={(event) => {
        event.preventDefault();
        over.value = "";
        if (accepts() && dragged.value) beginMove(dragged.value, host.name);
      }}
    >
      <div class="host-card-head">
        <a href={`#/host/${encodeURIComponent(host.name)}`} class="host-name" title={host.name}>
          {host.name}
        </a>
        {host.problems.length > 0 ? (
          <a class="badge" href="#/issues">
            {host.problems.length} {host.problems.length === 1 ? "problem" : "problems"}
          </a>
        ) : null}
        <Live live={host.live} />
      </div>
      <Meter label="CPU" value={host.cpu_used} detail={`load ${host.load ?? "–"} on ${host.cpus ?? "–"} CPUs`} />
      <Meter label="Memory" value={share(host.memory_used_mib, host.memory_mib)} />
      <div class="host-card-guests">
        <button
          type="button"
          class="plain host-count"
          title={`${running} of ${here.length} guests run; show only these`}
          onClick={() => (typed.value = typed.value === host.name ? "" : host.name)}
        >
          {running}/{here.length}
          <span class="unseen"> guests of {host.name} run; show only these</span>
        </button>
        <span class="chips">
          {here.slice(0, CHIPS).map((guest) => (
            <Chip key={guest.key} guest={guest} />
          ))}
        </span>
      </div>
    </div>
  );
}

function Totals() {
  const all = hosts.value;
  const live = all.filter((host) => host.live);
  const sum = (of: (host: Host) => number | null) => live.reduce((total, host) => total + (of(host) ?? 0), 0);
  const memory = sum((host) => host.memory_mib);
  const used = sum((host) => host.memory_used_mib);
  const running = guests.value.filter((guest) => guest.state === "running").length;
  return (
    <p class="totals">
      <b>{live.length}</b> of {all.length} hosts live · <b>{running}</b> of {guests.value.length} guests run ·{" "}
      <b>{percent(share(used, memory))}</b> of memory used
    </p>
  );
}

export function Overview() {
  return (
    <div class="overview">
      <h1 class="unseen">Overview</h1>
      <section class="hosts" aria-label="Hosts">
        <div class="section-head">
          <h2>Hosts</h2>
          <Totals />
        </div>
        {hosts.value.length === 0 && loaded.value ? (
          <Empty>No host that you may see.</Empty>
        ) : (
          <Virtual
            class="host-list"
            role="list"
            label="Hosts"
            rows={hosts.value}
            height={122}
            render={(host, index) => <HostCard key={host.name} host={host} index={index} />}
          />
        )}
      </section>
      <section class="all-guests" aria-label="Guests">
        <GuestTable source={guests} label="Guests" />
      </section>
    </div>
  );
}
