import { signal } from "@preact/signals";
import { describe, expect, it } from "vitest";
import { paced } from "../src/data/pace";

function followed(source: ReturnType<typeof signal<string>>) {
  const turns: (() => void)[] = [];
  const seen: (string | undefined)[] = [];
  const follower = paced(source, (work) => turns.push(work));
  follower.subscribe((value) => seen.push(value));
  return { seen, follower, waiting: () => turns.length, turn: () => turns.splice(0).forEach((work) => work()) };
}

describe("a paced signal", () => {
  it("has from the beginning what the other has", () => {
    const { seen, waiting } = followed(signal("a"));
    expect([seen, waiting()]).toEqual([["a"], 0]);
  });

  it("takes the last of many steps, once a turn", () => {
    const source = signal("");
    const { seen, follower, waiting, turn } = followed(source);
    for (const text of ["g", "gu", "gue"]) source.value = text;
    expect([follower.value, waiting()]).toEqual(["", 1]);
    turn();
    expect(seen).toEqual(["", "gue"]);
    source.value = "gues";
    expect(waiting()).toBe(1);
    turn();
    expect(seen).toEqual(["", "gue", "gues"]);
  });

  it("tells nothing where all is as before in the end", () => {
    const source = signal("a");
    const { seen, turn } = followed(source);
    source.value = "ab";
    source.value = "a";
    turn();
    expect(seen).toEqual(["a"]);
    source.value = "b";
    turn();
    expect(seen).toEqual(["a", "b"]);
  });
});
