// Small parts that every view uses.
import type { ComponentChildren } from "preact";
import { percent } from "../data/format";

export function State({ state }: { state: string }) {
  return (
    <span class={`state state-${state.replaceAll(" ", "-")}`}>
      <span class="state-dot" aria-hidden="true" />
      {state}
    </span>
  );
}

export function Live({ live }: { live: boolean }) {
  return (
    <span class={live ? "live" : "live live-not"}>
      <span class="state-dot" aria-hidden="true" />
      {live ? "live" : "not live"}
    </span>
  );
}

/** A bar with a figure; the figure stands there as text too. */
export function Meter({ label, value, detail }: { label: string; value: number | null; detail?: string }) {
  const level = value === null ? "" : value >= 0.9 ? " meter-high" : value >= 0.75 ? " meter-warm" : "";
  return (
    <div class={`meter${level}`}>
      <span class="meter-label">{label}</span>
      <span class="meter-bar" aria-hidden="true">
        <span style={{ width: value === null ? "0" : `${Math.round(value * 100)}%` }} />
      </span>
      <span class="meter-figure" title={detail}>
        {percent(value)}
      </span>
    </div>
  );
}

export function Empty({ children }: { children: ComponentChildren }) {
  return <p class="empty">{children}</p>;
}

interface FieldProps {
  id: string;
  label: string;
  error?: string | undefined;
  hint?: string | undefined;
  children: ComponentChildren;
}

/** A label, the control that has that id, a hint, and what is wrong with it. */
export function Field({ id, label, error, hint, children }: FieldProps) {
  return (
    <div class={error ? "field field-wrong" : "field"}>
      <label for={id}>{label}</label>
      {children}
      {hint ? (
        <p class="hint lines" id={`${id}-hint`}>
          {hint}
        </p>
      ) : null}
      {error ? (
        <p class="wrong" id={`${id}-wrong`}>
          {error}
        </p>
      ) : null}
    </div>
  );
}

/** Returns what ties a control to its hint and its error. */
export function described(id: string, error: string | undefined, hint?: string) {
  const ids = [hint ? `${id}-hint` : "", error ? `${id}-wrong` : ""].filter(Boolean).join(" ");
  return { id, "aria-invalid": error ? true : undefined, "aria-describedby": ids || undefined };
}

export function Facts({ rows }: { rows: readonly (readonly [string, ComponentChildren])[] }) {
  return (
    <dl class="facts">
      {rows.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}
