// A host is emptied, and gets its guests back: what is asked before, and what becomes of each guest.
import { useState } from "preact/hooks";
import { actFleet } from "../data/activity";
import { clock } from "../data/format";
import { lastOfHost, verdict } from "../data/jobs";
import type { Host } from "../data/model";
import { guestsByHost, hosts, may, tables } from "../data/store";
import { described, Field } from "./basics";
import { Dialog } from "./dialog";
import { Progress } from "./progress";

type Verb = "evacuate" | "restore";
const TITLES: Record<Verb, string> = { evacuate: "Evacuate", restore: "Restore" };
const MOST = 16;

function Said({ verb, host }: { verb: Verb; host: Host }) {
  const running = (guestsByHost.value.get(host.name) ?? []).filter((guest) => guest.state !== "shut off").length;
  if (verb === "restore") {
    return (
      <p>
        The guests that were on <b>{host.name}</b> move back, wherever they are now, and new ones may come to it again.
      </p>
    );
  }
  return (
    <p>
      The guests that run on <b>{host.name}</b> ({running}) move to other hosts while they run, each to the emptiest that it fits on. What cannot move stays, and is listed with its reasons. Nothing
      new is put on {host.name} until it is restored.
    </p>
  );
}

function Ask({ verb, host, onClose }: { verb: Verb; host: Host; onClose: () => void }) {
  const [parallel, setParallel] = useState("2");
  const [copy, setCopy] = useState(false);
  const [off, setOff] = useState(false);
  const wrong = /^\d{1,2}$/.test(parallel) && Number(parallel) >= 1 && Number(parallel) <= MOST;
  const error = wrong ? undefined : `A number from 1 to ${MOST}.`;
  const title = `${TITLES[verb]} ${host.name}`;
  const kwarg = { host: host.name, parallel: Number(parallel), copy_disks: copy, ...(off ? { shut_off: true } : {}) };
  return (
    <Dialog title={title} onClose={onClose}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (error) return;
          onClose();
          void actFleet(title, verb, kwarg);
        }}
      >
        <Said verb={verb} host={host} />
        <Field id="parallel" label="Guests that move at a time" error={error}>
          <input
            {...described("parallel", error)}
            inputMode="numeric"
            value={parallel}
            onInput={(event) => setParallel(event.currentTarget.value)}
          />
        </Field>
        <label class="check">
          <input type="checkbox" checked={copy} onChange={(event) => setCopy(event.currentTarget.checked)} />
          copy disks that the hosts do not share
        </label>
        {verb === "evacuate" ? (
          <label class="check">
            <input type="checkbox" checked={off} onChange={(event) => setOff(event.currentTarget.checked)} />
            also move guests that are shut off
          </label>
        ) : null}
        <div class="buttons">
          <button type="button" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" class="primary" disabled={error !== undefined}>
            {TITLES[verb]}
          </button>
        </div>
      </form>
    </Dialog>
  );
}

/** The buttons for what the user's roles let him do to a host. */
export function HostActions({ host }: { host: Host }) {
  const [asked, setAsked] = useState<Verb | null>(null);
  const job = lastOfHost(tables.value.jobs.values(), host.name);
  const busy = job !== undefined && verdict(job) === "running";
  const verbs: Verb[] = [];
  if (may(host.name, "fleet.evacuate") && hosts.value.length > 1) verbs.push("evacuate");
  if (may(host.name, "fleet.restore") && host.evacuated) verbs.push("restore");
  if (verbs.length === 0) return null;
  return (
    <div class="actions" role="group" aria-label={`Actions for ${host.name}`}>
      {verbs.map((verb) => (
        <button key={verb} type="button" disabled={busy} onClick={() => setAsked(verb)}>
          {TITLES[verb]}…
        </button>
      ))}
      {asked ? <Ask verb={asked} host={host} onClose={() => setAsked(null)} /> : null}
    </div>
  );
}

/** That a host is evacuated, and what its last evacuation or restoration does or did. */
export function Evacuation({ host }: { host: Host }) {
  const job = lastOfHost(tables.value.jobs.values(), host.name);
  const running = job !== undefined && verdict(job) === "running";
  if (!host.evacuated && !running) return null;
  return (
    <section class="evacuation" aria-label="Evacuation">
      {host.evacuated ? (
        <p>
          <b>Evacuated</b> since {clock(host.evacuated.since)} by {host.evacuated.user}: nothing new is put here.
        </p>
      ) : null}
      {job ? (
        <>
          <p>
            <span class={`job job-${verdict(job)}`}>{verdict(job)}</span>
            <span class="lines">{job.outcome?.comment ?? `${job.function.slice(6)} of ${host.name}`}</span>
          </p>
          <Progress steps={job.progress} running={running} />
        </>
      ) : null}
    </section>
  );
}
