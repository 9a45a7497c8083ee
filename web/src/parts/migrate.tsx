// Moving a guest: the target is chosen, the hosts check everything that could stand in the way, then it moves.
import { useEffect, useRef, useState } from "preact/hooks";
import * as api from "../data/api";
import { act, outcome } from "../data/activity";
import { duration } from "../data/format";
import type { Guest, Outcome, Reason } from "../data/model";
import { hosts, now, tables } from "../data/store";
import { Dialog } from "./dialog";
import { Field } from "./basics";
import { Cancel } from "./progress";

type Stage =
  | { at: "choose" }
  | { at: "check"; since: number }
  | { at: "possible" }
  | { at: "refused"; reasons: Reason[]; comment: string }
  | { at: "move"; jid: string; from: string; since: number }
  | { at: "moved"; comment: string }
  | { at: "failed"; comment: string };

const PATIENCE = 120_000; // milliseconds for the checks

async function checked(guest: Guest, target: string, copy: boolean): Promise<Stage> {
  try {
    const kwarg = { name: guest.name, target, test: true, copy_disks: copy };
    const jid = await api.start(guest.host, "hypervisor.migrate", kwarg);
    const found = await outcome(jid, guest.host, PATIENCE);
    if (found === null) return { at: "refused", reasons: [], comment: `${guest.host} did not answer in time.` };
    if (found.possible ?? (found.success && found.reasons.length === 0)) return { at: "possible" };
    return { at: "refused", reasons: found.reasons, comment: found.comment };
  } catch (error) {
    return { at: "refused", reasons: [], comment: error instanceof Error ? error.message : String(error) };
  }
}

function Reasons({ reasons, comment }: { reasons: Reason[]; comment: string }) {
  return (
    <div class="verdict verdict-no" role="alert">
      <p>
        <b>It cannot move there now.</b>
      </p>
      {reasons.length > 0 ? (
        <ul class="reasons">
          {reasons.map((reason, number) => (
            <li key={number}>
              <span class="tag">{reason.check}</span> {reason.text}
            </li>
          ))}
        </ul>
      ) : (
        <p class="lines">{comment}</p>
      )}
    </div>
  );
}

function Progress({ stage, guest, target }: { stage: Stage; guest: Guest; target: string }) {
  switch (stage.at) {
    case "choose":
      return null;
    case "check":
      return (
        <p class="verdict" role="status">
          <span class="spinner" aria-hidden="true" /> {guest.host} and {target} check everything that could stand in the
          way… <Elapsed since={stage.since} />
        </p>
      );
    case "possible":
      return (
        <p class="verdict verdict-yes" role="status">
          Nothing stands in the way{guest.state === "running" ? "; the guest runs on while it moves" : ""}.
        </p>
      );
    case "refused":
      return <Reasons reasons={stage.reasons} comment={stage.comment} />;
    case "move":
      return (
        <div class="verdict" role="status">
          <span class="spinner" aria-hidden="true" /> {guest.name} moves to {target}… <Elapsed since={stage.since} />{" "}
          {stage.jid ? <Cancel guest={guest.name} host={stage.from} /> : null}
          <p class="hint">You may close this: the job goes on, and tells you when it has ended.</p>
        </div>
      );
    case "moved":
      return (
        <p class="verdict verdict-yes" role="status">
          {guest.name} is on {target}. {stage.comment}
        </p>
      );
    case "failed":
      return (
        <div class="verdict verdict-no" role="alert">
          <p>
            <b>It did not move.</b>
          </p>
          <p class="lines">{stage.comment}</p>
        </div>
      );
  }
}

function Elapsed({ since }: { since: number }) {
  return <span class="elapsed">{duration((now.value - since) / 1000)}</span>;
}

function ended(found: Outcome | null): Stage | null {
  if (found === null) return null;
  if (found.success) return { at: "moved", comment: found.comment };
  return { at: "failed", comment: found.comment || found.state || "The job's record says no more." };
}

export function Migrate(props: { guest: Guest; target: string; onClose: () => void }) {
  const { guest, onClose } = props;
  const others = hosts.value.filter((host) => host.name !== guest.host);
  const [target, setTarget] = useState(props.target);
  const [copy, setCopy] = useState(false);
  const [stage, setStage] = useState<Stage>({ at: "choose" });
  const asked = useRef(0);
  const goButton = useRef<HTMLButtonElement>(null);

  useEffect(() => {
    if (!target) return;
    asked.current += 1;
    const mine = asked.current;
    setStage({ at: "check", since: Date.now() });
    void checked(guest, target, copy).then((next) => {
      if (asked.current === mine) setStage(next);
    });
    return () => {
      asked.current += 1;
    };
  }, [target, copy]);

  useEffect(() => {
    if (stage.at === "possible") goButton.current?.focus();
  }, [stage.at]);

  const record = stage.at === "move" ? tables.value.jobs.get(stage.jid)?.outcomes[stage.from] : undefined;
  useEffect(() => {
    const next = ended(record ?? null);
    if (next !== null) setStage(next);
  }, [record]);

  const move = async () => {
    setStage({ at: "move", jid: "", from: guest.host, since: Date.now() });
    const kwarg = { name: guest.name, target, copy_disks: copy };
    const jid = await act(`Move ${guest.name} to ${target}`, guest.host, "migrate", kwarg);
    if (jid === null) setStage({ at: "failed", comment: "The job could not be started." });
    else setStage({ at: "move", jid, from: guest.host, since: Date.now() });
  };

  const busy = stage.at === "move";
  const over = stage.at === "moved";
  return (
    <Dialog title={`Move ${guest.name}`} onClose={onClose}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (stage.at === "possible") void move();
        }}
      >
        <Field id="move-target" label={`From ${guest.host} to`}>
          <select
            id="move-target"
            value={target}
            disabled={busy || over}
            onChange={(event) => setTarget(event.currentTarget.value)}
          >
            <option value="">choose a host</option>
            {others.map((host) => (
              <option key={host.name} value={host.name} disabled={!host.live}>
                {host.live ? host.name : `${host.name} (not live)`}
              </option>
            ))}
          </select>
        </Field>
        <label class="check">
          <input
            type="checkbox"
            checked={copy}
            disabled={busy || over}
            onChange={(event) => setCopy(event.currentTarget.checked)}
          />
          copy disks that the hosts do not share
        </label>
        <Progress stage={stage} guest={guest} target={target} />
        <div class="buttons">
          <button type="button" onClick={onClose}>
            {busy || over || stage.at === "failed" ? "Close" : "Cancel"}
          </button>
          {busy || over ? null : (
            <button ref={goButton} type="submit" class="primary" disabled={stage.at !== "possible"}>
              Move{target ? ` to ${target}` : ""}
            </button>
          )}
        </div>
      </form>
    </Dialog>
  );
}
