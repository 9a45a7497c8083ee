// A guest that is dragged to a host. Only what began on this page counts, never what the dragged data says.
import { signal } from "@preact/signals";
import type { Guest } from "../data/model";

export const dragged = signal<Guest | null>(null);

export function startDrag(event: DragEvent, guest: Guest): void {
  if (!event.dataTransfer) return;
  event.dataTransfer.effectAllowed = "move";
  event.dataTransfer.setData("text/plain", guest.name);
  event.stopPropagation();
  // After the event: changing the page within it ends the drag in some browsers.
  setTimeout(() => (dragged.value = guest));
}

export function endDrag(): void {
  setTimeout(() => (dragged.value = null));
}
