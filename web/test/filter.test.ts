import { describe, expect, it } from "vitest";
import { filtered, filtering, sorted } from "../src/data/filter";
import type { Guest } from "../src/data/model";
import { guest } from "./records";

const names = (list: readonly { name: string }[]) => list.map((one) => one.name);

describe("filtered", () => {
  const all = [
    guest({ name: "web1", host: "hv1", state: "running", addresses: ["10.0.0.5"] }),
    guest({ name: "Web2", host: "hv2", state: "shut off" }),
    guest({ name: "db", host: "hv1", state: "crashed" }),
  ];

  it("finds every word, wherever it stands, small or capital", () => {
    expect(names(filtered(all, "WEB"))).toEqual(["web1", "Web2"]);
    expect(names(filtered(all, "hv1 web"))).toEqual(["web1"]);
    expect(names(filtered(all, "10.0.0"))).toEqual(["web1"]);
    expect(names(filtered(all, "shut off"))).toEqual(["Web2"]);
  });

  it("shows all where nothing is typed, and nothing where nothing fits", () => {
    expect(filtered(all, "  ")).toHaveLength(3);
    expect(filtered(all, "nobody")).toEqual([]);
  });

  it("takes signs of patterns as what they are", () => {
    expect(filtered(all, ".*")).toEqual([]);
    expect(filtered(all, "(")).toEqual([]);
  });
});

describe("filtering", () => {
  const all = ["web1", "web12", "db1", "web2"].map((name) => guest({ name }));

  it("finds at each key what is found without what was typed before", () => {
    const filter = filtering();
    for (const typed of ["w", "we", "web1", "web12", "web1", "w", "", "b", "B1", "1 w", "1 we", "1 ", "x", "xy", "x", ""]) {
      expect([typed, filter(all, typed)]).toEqual([typed, filtered(all, typed)]);
    }
  });

  it("returns the same list for the same guests", () => {
    const filter = filtering();
    const found = filter(all, "w");
    expect(names(found)).toEqual(["web1", "web12", "web2"]);
    expect(filter(all, "we")).toBe(found);
    expect(filter(all, "web")).toBe(found);
    expect(filter(all, "we")).toBe(found);
    expect(filter(all, "")).toBe(all);
    expect(filter(all, "1")).not.toBe(found);
  });

  it("looks only among what was found before, as long as one types on", () => {
    let looked = 0;
    const watched = all.map((one) =>
      Object.defineProperty({ ...one }, "search", { get: () => ((looked += 1), one.search) }),
    );
    const filter = filtering();
    filter(watched, "web1");
    expect(looked).toBe(4);
    filter(watched, "web12");
    expect(looked).toBe(4 + 2);
    filter(watched, "web");
    expect(looked).toBe(4 + 2 + 4);
  });

  it("begins anew with guests that have changed", () => {
    const filter = filtering();
    filter(all, "web1");
    const others = [...all, guest({ name: "web13" })];
    expect(names(filter(others, "web1"))).toEqual(["web1", "web12", "web13"]);
    expect(names(filter(all.slice(1), "web1"))).toEqual(["web12"]);
  });
});

describe("sorted", () => {
  it("orders names as people do, and equals by name", () => {
    const all = [guest({ name: "web10" }), guest({ name: "web9", cpus: 4 }), guest({ name: "Web1" })];
    expect(names(sorted(all, { column: "name", descending: false }))).toEqual(["Web1", "web9", "web10"]);
    expect(names(sorted(all, { column: "name", descending: true }))[0]).toBe("web10");
    expect(names(sorted(all, { column: "cpus", descending: true }))).toEqual(["web9", "Web1", "web10"]);
  });

  it("puts the longest uptime last, and what does not run first", () => {
    const all = [
      guest({ name: "old", started: "2026-01-01T00:00:00Z" }),
      guest({ name: "new", started: "2026-11-01T00:00:00Z" }),
      guest({ name: "off", started: null }),
    ];
    expect(names(sorted(all, { column: "uptime", descending: false }))).toEqual(["off", "new", "old"]);
  });
});

describe("ten thousand guests", () => {
  it("are filtered and sorted at each key press", () => {
    const states = ["running", "shut off", "paused"];
    const all = Array.from({ length: 10_000 }, (_, number) =>
      guest({
        name: `guest-${(number * 7919) % 10_000}`,
        host: `hv${number % 300}`,
        state: states[number % 3] ?? "running",
        addresses: [`10.${number >> 8}.${number & 255}.1`],
      }),
    );
    const timed = <Result>(work: () => Result): [Result, number] => {
      const begun = performance.now();
      return [work(), performance.now() - begun];
    };
    const [inOrder, sorting] = timed(() => sorted(all, { column: "name", descending: false }));
    expect(inOrder[1]?.name).toBe("guest-1");
    expect(inOrder.at(-1)?.name).toBe("guest-9999");
    let worst = 0;
    const filter = filtering();
    for (const typed of ["g", "gu", "gue", "guest-12", "guest-12 ", "guest-12 h", "guest-12 hv12", "guest-12 hv12 off"]) {
      const [found, time] = timed(() => filter(inOrder, typed));
      worst = Math.max(worst, time);
      expect(found.length).toBeGreaterThan(0);
      expect(found).toEqual(inOrder.filter((one) => typed.trim().split(" ").every((word) => has(one, word))));
    }
    console.info(`10,000 guests: worst key press ${worst.toFixed(1)} ms (goal 50), sorted in ${sorting.toFixed(1)} ms`);
    // The figure is for people: a loaded machine is slow. Ten times the goal is a wrong algorithm on any.
    expect(worst).toBeLessThan(500);
  });
});

function has(one: Guest, word: string): boolean {
  return [one.name, one.state, one.host, ...one.addresses, one.uuid].some((text) => text.includes(word));
}
