// From a click to a job: at once, or after a question.
import { signal } from "@preact/signals";
import type { Action } from "../data/actions";
import { act } from "../data/activity";
import type { Guest } from "../data/model";
import { whenLeft } from "../data/session";

/** The question that is open, if any. */
export interface Question {
  kind: "confirm" | "delete" | "resize" | "migrate";
  action: Action;
  guest: Guest;
  target: string;
}

export const question = signal<Question | null>(null);
whenLeft(() => (question.value = null));

export function beginAction(action: Action, guest: Guest): void {
  if (action.verb === "migrate") beginMove(guest, "");
  else if (action.verb === "resize") question.value = { kind: "resize", action, guest, target: "" };
  else if (action.confirm === "name") question.value = { kind: "delete", action, guest, target: "" };
  else if (action.confirm === "ask") question.value = { kind: "confirm", action, guest, target: "" };
  else void act(`${action.label} ${guest.name}`, guest.host, action.verb, { name: guest.name });
}

export function beginMove(guest: Guest, target: string): void {
  question.value = { kind: "migrate", action: { verb: "migrate", label: "Move" }, guest, target };
}
