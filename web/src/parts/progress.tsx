// What a job of the runner does with each guest: where it is, and what keeps it where it stays.
import { act } from "../data/activity";
import { counted, stepKind } from "../data/jobs";
import type { Step } from "../data/model";
import { may } from "../data/store";

export function Reasons({ against }: { against: Record<string, string[]> }) {
  const rows = Object.entries(against).flatMap(([host, reasons]) => reasons.map((reason) => [host, reason] as const));
  if (rows.length === 0) return null;
  return (
    <ul class="reasons">
      {rows.map(([host, reason], number) => (
        <li key={number}>
          <span class="tag">{host}</span> {reason}
        </li>
      ))}
    </ul>
  );
}

/** Calls off the migration of a guest, where his roles let the user. */
export function Cancel({ guest, host }: { guest: string; host: string }) {
  if (!may(host, "cancel")) return null;
  return (
    <button
      type="button"
      aria-label={`Cancel the migration of ${guest}`}
      onClick={() => void act(`Cancel the migration of ${guest}`, host, "cancel", { name: guest })}
    >
      Cancel
    </button>
  );
}

function Row({ step, running }: { step: Step; running: boolean }) {
  const kind = stepKind(step);
  return (
    <li class="step">
      <b>{step.guest}</b> <span class={`job job-${kind}`}>{step.step}</span>
      <span class="hint">{step.to && step.to !== step.from ? `${step.from} → ${step.to}` : step.from}</span>
      {running && step.step === "moving" ? <Cancel guest={step.guest} host={step.from} /> : null}
      {step.text ? <p class="lines">{step.text}</p> : null}
      {kind === "failed" ? <Reasons against={step.against} /> : null}
    </li>
  );
}

export function Progress({ steps, running }: { steps: readonly Step[]; running: boolean }) {
  if (steps.length === 0) return null;
  return (
    <>
      <p role="status">{counted(steps)}</p>
      <ul class="steps">
        {steps.map((step) => (
          <Row key={step.guest} step={step} running={running} />
        ))}
      </ul>
    </>
  );
}
