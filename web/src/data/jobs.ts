// Jobs of hosts, and of the master's runner, which acts on several hosts and has one outcome.
import type { Job, Outcome, Step } from "./model";

/** The name of a function without that of its module. */
export function short(fun: string): string {
  return fun.replace(/^(hypervisor|fleet)\./, "");
}

export function ofFleet(job: Job): boolean {
  return job.function.startsWith("fleet.");
}

/** What has become of a job so far: by host, or for all of them under an empty name. */
export function outcomes(job: Job): [string, Outcome][] {
  if (ofFleet(job)) return job.outcome ? [["", job.outcome]] : [];
  return Object.entries(job.outcomes);
}

export function verdict(job: Job): "running" | "done" | "failed" {
  const found = outcomes(job);
  if (found.some(([, outcome]) => !outcome.success)) return "failed";
  return found.length < (ofFleet(job) ? 1 : Math.max(1, job.hosts.length)) ? "running" : "done";
}

export function newestFirst(jobs: Iterable<Job>): Job[] {
  return [...jobs].sort((one, other) => (one.jid < other.jid ? 1 : -1));
}

/** Whether a job has to do with a guest of a name. */
export function concerns(job: Job, guest: string): boolean {
  return job.guest === guest || job.progress.some((step) => step.guest === guest);
}

const ON_THE_WAY: readonly string[] = ["waiting", "checking", "moving", "making"];
const WENT_WELL: readonly string[] = ["moved", "possible", "made", "forgotten"];

export function stepKind(step: Step): "running" | "done" | "failed" {
  if (ON_THE_WAY.includes(step.step)) return "running";
  return WENT_WELL.includes(step.step) ? "done" : "failed";
}

/** Counts steps in words, such as "2 moved, 1 stays". */
export function counted(steps: readonly Step[]): string {
  const found = new Map<string, number>();
  for (const { step } of steps) found.set(step, (found.get(step) ?? 0) + 1);
  return [...found].map(([step, count]) => `${count} ${step}`).join(", ");
}

/** The last evacuation or restoration of a host, questions left out. */
export function lastOfHost(jobs: Iterable<Job>, host: string): Job | undefined {
  return newestFirst(jobs).find(
    (job) =>
      (job.function === "fleet.evacuate" || job.function === "fleet.restore") &&
      job.kwarg.host === host &&
      job.kwarg.test !== true,
  );
}
