// What can be done to a guest: which function does it, in which states it makes sense, and who is asked first.
import type { Guest } from "./model";

export interface Action {
  verb: string;
  label: string;
  /** States in which it is offered; none means in each. */
  states?: readonly string[];
  confirm?: "ask" | "name";
  danger?: boolean;
}

const ACTIVE = ["running", "blocked", "pmsuspended"] as const;

export const ACTIONS: readonly Action[] = [
  { verb: "start", label: "Start", states: ["shut off", "crashed"] },
  { verb: "resume", label: "Resume", states: ["paused"] },
  { verb: "shutdown", label: "Shut down", states: ACTIVE },
  { verb: "reboot", label: "Reboot", states: ACTIVE },
  { verb: "suspend", label: "Suspend", states: ["running", "blocked"] },
  {
    verb: "power_off",
    label: "Force off",
    states: [...ACTIVE, "paused", "shutting down", "crashed"],
    confirm: "ask",
    danger: true,
  },
  { verb: "migrate", label: "Move to…" },
  { verb: "resize", label: "Resize…" },
  { verb: "delete", label: "Delete…", states: ["shut off"], confirm: "name", danger: true },
];

/** Returns what may be offered for a guest: what his roles allow, what its state makes sensible, where it can go. */
export function offered(guest: Guest, may: (host: string, verb: string) => boolean, hosts: number): Action[] {
  return ACTIONS.filter(
    (action) =>
      may(guest.host, action.verb) &&
      (action.states?.includes(guest.state) ?? true) &&
      (action.verb !== "migrate" || hosts > 1),
  );
}
