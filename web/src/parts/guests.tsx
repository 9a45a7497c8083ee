// The table of guests: sorted, filtered as you type, each row with what can be done to it.
import { computed, signal, type ReadonlySignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { filtering, sorted, type Column, type Order } from "../data/filter";
import { mib, since } from "../data/format";
import { offered, type Action } from "../data/actions";
import type { Guest } from "../data/model";
import { paced } from "../data/pace";
import { whenLeft } from "../data/session";
import { hosts, may, now, user } from "../data/store";
import { beginAction } from "./doing";
import { State } from "./basics";
import { dragged, endDrag, startDrag } from "./drag";
import { Menu } from "./menu";
import { Virtual } from "./virtual";

const COLUMNS: readonly { column: Column; label: string; narrow?: boolean }[] = [
  { column: "name", label: "Name", narrow: true },
  { column: "state", label: "State", narrow: true },
  { column: "host", label: "Host" },
  { column: "address", label: "Address" },
  { column: "cpus", label: "CPUs" },
  { column: "memory", label: "Memory" },
  { column: "uptime", label: "Uptime" },
];

// They outlive the views, so that one comes back to the same table.
export const typed = signal("");
whenLeft(() => (typed.value = ""));
const wanted = paced(typed, (work) => void requestAnimationFrame(work));
export const order = signal<Order>({ column: "name", descending: false });

const narrowScreen = window.matchMedia("(max-width: 760px)");
const narrow = signal(narrowScreen.matches);
narrowScreen.addEventListener("change", (event) => (narrow.value = event.matches));

function sortBy(column: Column): void {
  const { column: current, descending } = order.value;
  order.value = { column, descending: current === column && !descending };
}

function Head() {
  const { column: current, descending } = order.value;
  return (
    <div role="rowgroup" class="guest-head">
      <div role="row" class="guest-row">
        {COLUMNS.map(({ column, label }) => (
          <div
            key={column}
            role="columnheader"
            class={`cell cell-${column}`}
            aria-sort={current === column ? (descending ? "descending" : "ascending") : undefined}
          >
            <button type="button" onClick={() => sortBy(column)}>
              {label}
              {current === column ? (
                <span aria-hidden="true" class="arrow">
                  {descending ? "▼" : "▲"}
                </span>
              ) : null}
            </button>
          </div>
        ))}
        <div role="columnheader" class="cell cell-menu">
          <span class="unseen">Actions</span>
        </div>
      </div>
    </div>
  );
}

function Uptime({ guest }: { guest: Guest }) {
  return <>{guest.started === null ? "" : since(guest.started, now.value)}</>;
}

function GuestRow({ guest, index }: { guest: Guest; index: number }) {
  // A row that only has another place is drawn again without its cells.
  const [roles, many] = [user.value, hosts.value.length > 1];
  const [movable, cells] = useMemo(() => {
    const actions = offered(guest, may, hosts.peek().length);
    return [actions.some((action) => action.verb === "migrate"), <Cells guest={guest} actions={actions} />] as const;
  }, [guest, roles, many]);
  const classes = ["guest-row", "guest-body", dragged.value?.key === guest.key ? "dragging" : ""];
  return (
    <div
      role="row"
      class={classes.filter(Boolean).join(" ")}
      data-index={index}
      data-guest={guest.uuid}
      aria-rowindex={index + 2}
      draggable={movable}
      onDragStart={(event) => startDrag(event, guest)}
      onDragEnd={endDrag}
    >
      {cells}
    </div>
  );
}

function Cells({ guest, actions }: { guest: Guest; actions: readonly Action[] }) {
  return (
    <>
      <div role="cell" class="cell cell-name">
        <a href={`#/guest/${encodeURIComponent(guest.uuid)}`} draggable={false} title={guest.name}>
          {guest.name}
        </a>
      </div>
      <div role="cell" class="cell cell-state">
        <State state={guest.state} />
      </div>
      <div role="cell" class="cell cell-host" title={guest.host}>
        {guest.host}
      </div>
      <div role="cell" class="cell cell-address" title={guest.addresses.join(", ")}>
        {guest.addresses[0] ?? ""}
        {guest.addresses.length > 1 ? <span class="more">+{guest.addresses.length - 1}</span> : null}
      </div>
      <div role="cell" class="cell cell-cpus">
        {guest.cpus ?? "–"}
      </div>
      <div role="cell" class="cell cell-memory">
        {mib(guest.memory_mib)}
      </div>
      <div role="cell" class="cell cell-uptime">
        <Uptime guest={guest} />
      </div>
      <div role="cell" class="cell cell-menu">
        {actions.length > 0 ? (
          <Menu
            label={`Actions for ${guest.name}`}
            items={actions.map((action) => ({
              label: action.label,
              danger: action.danger ?? false,
              run: () => beginAction(action, guest),
            }))}
          />
        ) : null}
      </div>
    </>
  );
}

/** By itself, so that a key changes the field alone; the table follows with the next frame. */
function Filter() {
  return (
    <input
      type="search"
      class="filter"
      placeholder="Filter by name, state, host, address"
      aria-label="Filter guests"
      value={typed.value}
      onInput={(event) => (typed.value = event.currentTarget.value)}
    />
  );
}

export function GuestTable({ source, label }: { source: ReadonlySignal<Guest[]>; label: string }) {
  // Sorted when guests change, filtered for each frame in which something was typed.
  const rows = useMemo(() => {
    const inOrder = computed(() => sorted(source.value, order.value));
    const filter = filtering();
    return computed(() => filter(inOrder.value, wanted.value));
  }, [source]);
  const total = source.value.length;
  return (
    <>
      <div class="toolbar">
        <Filter />
        <span class="count" role="status">
          {rows.value.length === total ? `${total}` : `${rows.value.length} of ${total}`} {total === 1 ? "guest" : "guests"}
        </span>
      </div>
      <Virtual
        class="guests"
        role="table"
        label={label}
        rows={rows.value}
        rowCount={rows.value.length + 1}
        height={narrow.value ? 52 : 33}
        head={<Head />}
        render={(guest, index) => <GuestRow key={guest.key} guest={guest} index={index} />}
      />
    </>
  );
}
