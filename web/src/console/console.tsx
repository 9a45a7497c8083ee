// The console of a guest: its screen or its serial port, in a frame with what a keyboard cannot say. It connects again by
// itself, with a new ticket, wherever the guest has gone meanwhile.
import { useEffect, useRef, useState } from "preact/hooks";
import { guestByUuid, may } from "../data/store";
import { Menu } from "../parts/menu";
import type { Screen } from "./screen";
import { opened, type Kind } from "./ticket";

type Status = "connecting" | "connected" | "lost" | "off" | "given up";

const LABELS: Record<Kind, string> = { vnc: "Screen", serial: "Serial port" };
const [FIRST_WAIT, LONGEST_WAIT] = [400, 10_000]; // milliseconds
// A door that does not open is asked for so many times in a row, each of which is a job.
const MOST_FAILURES = 8;
const ON = ["running", "paused", "blocked", "shutting down", "pmsuspended"];

async function connect(uuid: string, kind: Kind, target: HTMLElement, line: { connected: () => void; lost: () => void }) {
  const guest = guestByUuid(uuid);
  if (!guest || !ON.includes(guest.state)) return null;
  const [module, door] = await Promise.all([
    kind === "vnc" ? import("./vnc") : import("./serial"),
    opened(guest, kind),
  ]);
  target.replaceChildren();
  return module.open(target, door, line);
}

interface Line {
  status: Status;
  why: string;
  screen: Screen | null;
}

/** Keeps one console open until the returned function is called. */
function keepOpen(uuid: string, kind: Kind, target: HTMLElement, tell: (line: Line) => void): () => void {
  let over = false;
  let screen: Screen | null = null;
  let wait = FIRST_WAIT;
  let timer = 0;
  let failures = 0;

  // Asked by a function, since it may change while something is waited for.
  const closed = () => over;

  const again = (status: Status, why: string) => {
    if (over) return;
    if (status === "lost") failures += 1;
    if (failures >= MOST_FAILURES) {
      tell({ status: "given up", why, screen: null });
      return;
    }
    tell({ status, why, screen: null });
    timer = window.setTimeout(() => void attempt(), wait);
    wait = status === "off" ? 2 * FIRST_WAIT : Math.min(LONGEST_WAIT, wait * 2);
  };
  const attempt = async () => {
    if (over) return;
    let done = false;
    const lost = () => {
      if (done || over) return;
      done = true;
      screen?.close();
      screen = null;
      again("lost", "");
    };
    const connected = () => {
      wait = FIRST_WAIT;
      failures = 0;
      tell({ status: "connected", why: "", screen });
      screen?.focus();
    };
    try {
      const opening = await connect(uuid, kind, target, { connected: () => queueMicrotask(connected), lost });
      if (opening === null) again("off", "");
      else if (closed()) opening.close();
      else screen = opening;
    } catch (error) {
      again("lost", error instanceof Error ? error.message : String(error));
    }
  };

  tell({ status: "connecting", why: "", screen: null });
  void attempt();
  return () => {
    over = true;
    window.clearTimeout(timer);
    screen?.close();
    screen = null;
    target.replaceChildren();
  };
}

const WORDS: Record<Status, string> = {
  connecting: "Connecting…",
  connected: "Connected",
  lost: "Connection lost; trying again…",
  off: "The guest does not run. The console comes when it does.",
  "given up": "The console does not open.",
};

export function Console({ uuid, consoles }: { uuid: string; consoles: readonly string[] }) {
  const kinds = (["vnc", "serial"] as const).filter((kind) => consoles.includes(kind));
  const [chosen, setChosen] = useState<Kind>(kinds[0] ?? "vnc");
  const kind = kinds.includes(chosen) ? chosen : (kinds[0] ?? chosen);
  const [line, setLine] = useState<Line>({ status: "connecting", why: "", screen: null });
  const [round, setRound] = useState(0);
  const frame = useRef<HTMLDivElement>(null);
  const target = useRef<HTMLDivElement>(null);

  useEffect(() => {
    const element = target.current;
    return element ? keepOpen(uuid, kind, element, setLine) : undefined;
  }, [uuid, kind, round]);

  const keys = Object.entries(line.screen?.keys ?? {});
  const { screen } = line;
  return (
    <div class="console" ref={frame}>
      <div class="console-bar">
        <div class="segments" role="group" aria-label="Kind of console">
          {kinds.map((one) => (
            <button key={one} type="button" aria-pressed={one === kind} onClick={() => setChosen(one)}>
              {LABELS[one]}
            </button>
          ))}
        </div>
        <span class={line.status === "lost" || line.status === "given up" ? "console-status console-lost" : "console-status"} role="status">
          {WORDS[line.status]}
        </span>
        {line.status === "given up" ? (
          <button type="button" onClick={() => setRound(round + 1)}>
            Try again
          </button>
        ) : null}
        <span class="spring" />
        {screen?.keys["Ctrl+Alt+Del"] ? (
          <button
            type="button"
            onClick={() => {
              screen.keys["Ctrl+Alt+Del"]?.();
              screen.focus();
            }}
          >
            Ctrl+Alt+Del
          </button>
        ) : null}
        {screen && keys.length > 0 ? (
          <Menu
            label="Send keys"
            items={keys.map(([label, send]) => ({
              label,
              run: () => {
                send();
                screen.focus();
              },
            }))}
          />
        ) : null}
        <button type="button" onClick={() => void frame.current?.requestFullscreen().catch(() => undefined)}>
          Full screen
        </button>
      </div>
      {line.why ? (
        <p class="console-why lines" role="alert">
          {line.why}
        </p>
      ) : null}
      <div class={`console-screen console-screen-${kind}`} ref={target} data-status={line.status} />
    </div>
  );
}

/** Whether a guest's consoles may be opened by this user at all. */
export function mayOpen(host: string): boolean {
  return may(host, "wsproxy.start");
}
