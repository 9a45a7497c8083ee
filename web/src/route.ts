// Where in the page one is: in the part of the address behind "#", so that links keep working and the server sees none.
import { signal } from "@preact/signals";

export interface Route {
  view: string;
  name: string;
}

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

export function parse(hash: string): Route {
  const [view = "", ...rest] = hash.replace(/^#?\/?/, "").split("/");
  return { view: view || "overview", name: decoded(rest.join("/")) };
}

export const route = signal<Route>({ view: "overview", name: "" });

export function go(path: string): void {
  window.location.hash = path;
}

export function follow(): void {
  const read = () => (route.value = parse(window.location.hash));
  window.addEventListener("hashchange", read);
  read();
}
