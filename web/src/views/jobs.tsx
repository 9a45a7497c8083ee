// What was asked for, by whom, and what became of it.
import { useState } from "preact/hooks";
import { clock } from "../data/format";
import { newestFirst, ofFleet, outcomes, short, verdict } from "../data/jobs";
import type { Job } from "../data/model";
import { tables } from "../data/store";
import { route } from "../route";
import { Empty } from "../parts/basics";
import { Progress } from "../parts/progress";

const SHOWN = 200;

function comments(job: Job): string {
  return outcomes(job)
    .map(([host, outcome]) => {
      const said = outcome.reasons.map((reason) => `${reason.check}: ${reason.text}`).join("\n") || outcome.comment;
      return `${host ? `${host}: ` : ""}${said || outcome.state || (outcome.success ? "done" : "failed")}`;
    })
    .join("\n");
}

export function JobRows({ jobs }: { jobs: readonly Job[] }) {
  return (
    <div class="table-frame" tabIndex={0} role="region" aria-label="Jobs">
      <table class="plain-table">
        <thead>
          <tr>
            <th scope="col">Started</th>
            <th scope="col">What</th>
            <th scope="col">Guest</th>
            <th scope="col">Host</th>
            <th scope="col">User</th>
            <th scope="col">Result</th>
          </tr>
        </thead>
        <tbody>
          {jobs.map((job) => (
            <tr key={job.jid} class={route.value.name === job.jid ? "marked" : ""}>
              <td class="figure">{clock(job.started)}</td>
              <td>
                {short(job.function)}
                {job.kwarg.test === true ? " (check)" : ""}
              </td>
              <td>{job.guest}</td>
              <td>{job.hosts.join(", ")}</td>
              <td>{job.user}</td>
              <td class="job-result">
                <span class={`job job-${verdict(job)}`}>{verdict(job)}</span>
                <span class="lines">{comments(job)}</span>
                {ofFleet(job) ? <Progress steps={job.progress} running={verdict(job) === "running"} /> : null}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

export function Jobs() {
  const [typed, setTyped] = useState("");
  const words = typed.toLowerCase().split(/\s+/).filter(Boolean);
  const all = newestFirst(tables.value.jobs.values());
  const found = all.filter((job) => {
    const text = [short(job.function), job.guest, job.user, job.jid, verdict(job), ...job.hosts].join("\n").toLowerCase();
    return words.every((word) => text.includes(word));
  });
  return (
    <div class="page">
      <h1>Jobs</h1>
      <div class="toolbar">
        <input
          type="search"
          class="filter"
          placeholder="Filter by what, guest, host, user, result"
          aria-label="Filter jobs"
          value={typed}
          onInput={(event) => setTyped(event.currentTarget.value)}
        />
        <span class="count" role="status">
          {found.length > SHOWN ? `the newest ${SHOWN} of ${found.length}` : `${found.length} jobs`}
        </span>
      </div>
      {found.length === 0 ? <Empty>No jobs.</Empty> : <JobRows jobs={found.slice(0, SHOWN)} />}
    </div>
  );
}
