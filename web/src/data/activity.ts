// What the user has set going: a message for each job, from the click to its outcome.
import { effect, signal } from "@preact/signals";
import * as api from "./api";
import type { Job, Outcome } from "./model";
import { whenLeft } from "./session";
import { tables } from "./store";

export interface Activity {
  id: number;
  /** What is being done, such as "Start web1 on hv1". */
  title: string;
  host: string;
  jid: string;
  status: "asked" | "running" | "done" | "failed";
  message: string;
  begun: number;
}

export const activities = signal<Activity[]>([]);
whenLeft(() => (activities.value = []));
let last = 0;

function change(id: number, with_: Partial<Activity>): void {
  activities.value = activities.value.map((one) => (one.id === id ? { ...one, ...with_ } : one));
}

export function dismiss(id: number): void {
  activities.value = activities.value.filter((one) => one.id !== id);
}

function said(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** A failure to be shown for itself, as where nothing was even asked. */
export function complain(title: string, error: unknown): void {
  last += 1;
  const activity: Activity = {
    id: last,
    title,
    host: "",
    jid: "",
    status: "failed",
    message: said(error),
    begun: Date.now(),
  };
  activities.value = [...activities.value, activity];
}

/** Starts a job on a host and follows it. Returns its number, or null when it could not be started. */
export function act(title: string, host: string, fun: string, kwarg: Record<string, unknown>): Promise<string | null> {
  return followed(title, host, () => api.start(host, `hypervisor.${fun}`, kwarg));
}

/** The same for a job of the master's runner. */
export function actFleet(title: string, fun: string, kwarg: Record<string, unknown>): Promise<string | null> {
  return followed(title, "", () => api.startFleet(`fleet.${fun}`, kwarg));
}

async function followed(title: string, host: string, begin: () => Promise<string>): Promise<string | null> {
  last += 1;
  const id = last;
  const activity: Activity = { id, title, host, jid: "", status: "asked", message: "", begun: Date.now() };
  activities.value = [...activities.value, activity];
  try {
    const jid = await begin();
    change(id, { jid, status: "running" });
    settle();
    return jid;
  } catch (error) {
    change(id, { status: "failed", message: said(error) });
    return null;
  }
}

export function outcomeOf(jobs: ReadonlyMap<string, Job>, jid: string, host: string): Outcome | null {
  const job = jobs.get(jid);
  return (host ? job?.outcomes[host] : job?.outcome) ?? null;
}

const SHOWN = 6000; // milliseconds for what went well

function settle(): void {
  const jobs = tables.peek().jobs;
  for (const activity of activities.peek()) {
    if (activity.status !== "running") continue;
    const outcome = outcomeOf(jobs, activity.jid, activity.host);
    if (outcome === null) continue;
    change(activity.id, { status: outcome.success ? "done" : "failed", message: outcome.comment || outcome.state });
    if (outcome.success) setTimeout(() => dismiss(activity.id), SHOWN);
  }
}

/** Compares what is going on with each new state of the inventory. */
export function watch(): void {
  effect(() => {
    if (tables.value.jobs.size > 0) queueMicrotask(settle);
  });
}

/** Waits for the outcome of a job; null when none came in time. */
export function outcome(jid: string, host: string, patience: number): Promise<Outcome | null> {
  return waited((jobs) => outcomeOf(jobs, jid, host), patience);
}

/** Waits for the end of a job of the master's runner and returns the job; null when it has not ended in time. */
export function ended(jid: string, patience: number): Promise<Job | null> {
  return waited((jobs) => (jobs.get(jid)?.outcome ? (jobs.get(jid) ?? null) : null), patience);
}

function waited<Found>(
  look: (jobs: ReadonlyMap<string, Job>) => Found | null,
  patience: number,
): Promise<Found | null> {
  return new Promise((resolve) => {
    let stop: (() => void) | null = null;
    const finish = (found: Found | null) => {
      clearTimeout(timer);
      queueMicrotask(() => stop?.());
      resolve(found);
    };
    const timer = setTimeout(() => finish(null), patience);
    stop = effect(() => {
      const found = look(tables.value.jobs);
      if (found !== null) finish(found);
    });
  });
}
