// Which host suits a new guest, and why: the one with the most memory left that nobody uses.
import { mib } from "./format";
import type { Host } from "./model";

export interface Advice {
  host: string;
  why: string;
}

function free(host: Host): number | null {
  return host.memory_mib === null || host.memory_used_mib === null ? null : host.memory_mib - host.memory_used_mib;
}

/** Returns the best of some hosts for a guest of so much memory; null where none is known to have it. */
export function advised(hosts: readonly Host[], memory: number): Advice | null {
  let best: { host: Host; left: number } | null = null;
  for (const host of hosts) {
    const left = free(host);
    if (!host.live || left === null || left < memory) continue;
    if (best === null || left > best.left) best = { host, left };
  }
  return best === null ? null : { host: best.host.name, why: `most free memory: ${mib(best.left)}` };
}
