// A button that opens a list of commands. The list is in the browser's top layer, so that no table cuts it off, and has
// its commands while it is open: a table has one in each row.
import { useId, useLayoutEffect, useRef, useState } from "preact/hooks";

export interface Item {
  label: string;
  danger?: boolean;
  run: () => void;
}

const EDGE = 8; // pixels to the border of the window

export function Menu({ label, items }: { label: string; items: readonly Item[] }) {
  const id = useId();
  const button = useRef<HTMLButtonElement>(null);
  const list = useRef<HTMLDivElement>(null);
  const [shown, setShown] = useState(false);

  const close = () => {
    if (list.current?.matches(":popover-open")) list.current.hidePopover();
  };
  const toggle = () => {
    if (list.current?.matches(":popover-open")) close();
    else setShown(true);
  };
  useLayoutEffect(() => {
    const [popup, anchor] = [list.current, button.current];
    if (!shown || !popup || !anchor) return;
    popup.showPopover();
    const at = anchor.getBoundingClientRect();
    const below = at.bottom + popup.offsetHeight + EDGE < window.innerHeight;
    const left = Math.max(EDGE, Math.min(at.right - popup.offsetWidth, window.innerWidth - popup.offsetWidth - EDGE));
    popup.style.left = `${left}px`;
    popup.style.top = `${below ? at.bottom + 2 : Math.max(EDGE, at.top - popup.offsetHeight - 2)}px`;
    popup.querySelector<HTMLElement>("[role=menuitem]")?.focus();
  }, [shown]);
  const move = (event: KeyboardEvent) => {
    const all = [...(list.current?.querySelectorAll<HTMLElement>("[role=menuitem]") ?? [])];
    const here = all.findIndex((item) => item === document.activeElement);
    const to = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: -1 }[event.key];
    if (event.key === "Tab") close();
    if (to === undefined || all.length === 0) return;
    event.preventDefault();
    event.stopPropagation();
    all.at(to % all.length)?.focus();
  };

  return (
    <>
      <button
        ref={button}
        type="button"
        class="menu-button"
        aria-label={label}
        aria-haspopup="menu"
        aria-controls={id}
        onClick={(event) => {
          event.stopPropagation();
          toggle();
        }}
      >
        <span aria-hidden="true">⋯</span>
      </button>
      <div
        ref={list}
        id={id}
        role="menu"
        aria-label={label}
        popover="auto"
        class="menu"
        onKeyDown={move}
        onToggle={(event) => setShown(event.newState === "open")}
      >
        {(shown ? items : []).map((item) => (
          <button
            key={item.label}
            type="button"
            role="menuitem"
            tabIndex={-1}
            class={item.danger ? "menu-item danger" : "menu-item"}
            onClick={(event) => {
              event.stopPropagation();
              close();
              button.current?.focus();
              item.run();
            }}
          >
            {item.label}
          </button>
        ))}
      </div>
    </>
  );
}
