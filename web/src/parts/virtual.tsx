// A list of any length of which only what can be seen is in the page.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

interface Props<Row> {
  rows: readonly Row[];
  height: number;
  render: (row: Row, index: number) => ComponentChildren;
  class: string;
  /** Roles of the container and of what holds the rows. */
  role: "table" | "list";
  head?: ComponentChildren;
  label: string;
  rowCount?: number;
}

const SPARE = 6; // rows beyond each edge

export function Virtual<Row>({ rows, height, render, role, head, label, rowCount, ...rest }: Props<Row>) {
  const scroller = useRef<HTMLDivElement>(null);
  const [seen, setSeen] = useState({ top: 0, height: 800 });

  useEffect(() => {
    const element = scroller.current;
    if (!element) return;
    const read = () => setSeen({ top: element.scrollTop, height: element.clientHeight });
    const observer = new ResizeObserver(read);
    observer.observe(element);
    element.addEventListener("scroll", read, { passive: true });
    return () => {
      observer.disconnect();
      element.removeEventListener("scroll", read);
    };
  }, []);

  const first = Math.max(0, Math.min(Math.floor(seen.top / height) - SPARE, rows.length - 1));
  const last = Math.min(rows.length, Math.ceil((seen.top + seen.height) / height) + SPARE);
  const shown = rows.slice(first, last);

  /** Arrow keys go from row to row, and the list scrolls with them. */
  const move = (event: KeyboardEvent) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const here = (event.target as HTMLElement).closest<HTMLElement>("[data-index]");
    const element = scroller.current;
    if (step === undefined || !here || !element) return;
    if ((event.target as HTMLElement).closest("input, select, [role=menu]")) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(rows.length - 1, Number(here.dataset.index) + step));
    const focus = () => element.querySelector<HTMLElement>(`[data-index="${next}"] a`)?.focus();
    focus();
    if (!element.contains(document.activeElement) || Number(here.dataset.index) !== next) {
      element.querySelector(`[data-index="${next}"]`)?.scrollIntoView({ block: "nearest" });
    }
  };

  return (
    <div
      ref={scroller}
      class={rest.class}
      role={role}
      aria-label={label}
      aria-rowcount={rowCount}
      onKeyDown={move}
      tabIndex={-1}
    >
      {head}
      <div
        role={role === "table" ? "rowgroup" : "presentation"}
        class="virtual"
        style={{ height: `${rows.length * height}px` }}
      >
        <div
          role="presentation"
          class="virtual-shown"
          style={{ transform: `translateY(${first * height}px)` }}
        >
          {shown.map((row, offset) => render(row, first + offset))}
        </div>
      </div>
    </div>
  );
}
