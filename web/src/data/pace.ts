// A signal that follows another at a pace that somebody else sets.
import { signal, type ReadonlySignal } from "@preact/signals";

/** Follows a signal with the last of what it has become, whenever its turn comes, and not with each step between. */
export function paced<Value>(source: ReadonlySignal<Value>, turn: (work: () => void) => void): ReadonlySignal<Value> {
  const found = signal(source.peek());
  let waiting = false;
  source.subscribe((value) => {
    if (waiting || value === found.peek()) return;
    waiting = true;
    turn(() => {
      waiting = false;
      found.value = source.peek();
    });
  });
  return found;
}
