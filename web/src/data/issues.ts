// What needs a person, worst first.
import { clock } from "./format";
import { outcomes, short } from "./jobs";
import type { Inventory, Job } from "./model";

export interface Issue {
  key: string;
  grave: boolean;
  what: string;
  why: string;
  /** What to do about it. */
  advice: string;
  link: string;
}

const DAY = 24 * 3600 * 1000;

function ofHosts(tables: Inventory): Issue[] {
  return [...tables.hosts.values()].flatMap((host) => {
    const link = `/host/${encodeURIComponent(host.name)}`;
    const problems = host.problems.map((problem, number) => ({
      key: `problem ${host.name} ${number}`,
      grave: false,
      what: `${host.name} has a problem`,
      why: problem,
      advice: "The host says so itself; its page shows more.",
      link,
    }));
    if (host.live) return problems;
    const silent = {
      key: `host ${host.name}`,
      grave: true,
      what: `${host.name} is not heard from`,
      why: host.seen ? `Last heard at ${clock(host.seen)}.` : "Never heard.",
      advice: "See whether the host runs and reaches its master. What is shown of its guests may be old.",
      link,
    };
    return [silent, ...problems];
  });
}

function ofGuests(tables: Inventory): Issue[] {
  return [...tables.guests.values()]
    .filter((guest) => guest.state === "crashed")
    .map((guest) => ({
      key: `guest ${guest.key}`,
      grave: true,
      what: `${guest.name} has crashed`,
      why: `It was on ${guest.host}.`,
      advice: "Look at its console, then start it again.",
      link: `/guest/${encodeURIComponent(guest.uuid)}`,
    }));
}

const GOOD_POOL = ["running", "active", "building", "unknown"];

function ofPools(tables: Inventory): Issue[] {
  return [...tables.pools]
    .filter(([, pool]) => !GOOD_POOL.includes(pool.state))
    .map(([key, pool]) => ({
      key: `pool ${key}`,
      grave: false,
      what: `The storage pool ${pool.name} of ${pool.host} is ${pool.state}`,
      why: "Guests with disks in it do not start.",
      advice: "A highstate of the host starts it again.",
      link: `/host/${encodeURIComponent(pool.host)}`,
    }));
}

function about(job: Job): string {
  return job.guest || (typeof job.kwarg.host === "string" ? job.kwarg.host : "a guest");
}

function ofJob(job: Job, now: number): Issue[] {
  if (job.started !== null && now - Date.parse(job.started) > DAY) return [];
  // A check that found reasons is an answer, no failure.
  // Nor is a console that did not open: the page that asked for it has said so.
  if (job.kwarg.test === true || job.function.startsWith("wsproxy.")) return [];
  return outcomes(job)
    .filter(([, outcome]) => !outcome.success)
    .map(([host, outcome]) => ({
      key: `job ${job.jid} ${host}`,
      grave: false,
      what: `${short(job.function)} of ${about(job)}${host ? ` on ${host}` : ""} failed`,
      why: outcome.comment || outcome.state || "No reason was given.",
      advice: job.user ? `${job.user} asked for it.` : "",
      link: `/jobs/${encodeURIComponent(job.jid)}`,
    }));
}

export function issues(tables: Inventory, now: number): Issue[] {
  const jobs = [...tables.jobs.values()].flatMap((job) => ofJob(job, now));
  const found = [...ofHosts(tables), ...ofGuests(tables), ...ofPools(tables), ...jobs];
  return found.sort((one, other) => Number(other.grave) - Number(one.grave));
}
