import { describe, expect, it } from "vitest";
import { bridgesIn, known, unoffered, unread, type Answers } from "../src/data/bridges";

const NONE = new Set<string>();

describe("the bridges of a host", () => {
  it("are those that are no network of libvirt's", () => {
    const told = { bridges: [{ name: "br0" }, { name: "virbr0" }, { none: 1 }, "x"] };
    expect(bridgesIn("hv1", told, new Set(["virbr0"]))).toEqual({ bridges: [{ name: "br0", host: "hv1" }] });
    expect(bridgesIn("hv1", { bridges: [] }, NONE)).toEqual({ bridges: [] });
  });

  it.each([{}, null, "x", { bridges: "br0" }])("are not known by %j", (told) => {
    expect(bridgesIn("hv1", told, NONE)).toEqual({ why: "hv1 does not tell them." });
  });

  it("are not known of one that does not answer", () => {
    expect(unread(new Error("hv1 does not answer."))).toEqual({ why: "hv1 does not answer." });
    expect(unread(new Error(`Traceback ${"x".repeat(900)}\nsecond`))).toEqual({ why: `Traceback ${"x".repeat(190)}` });
    expect(unread(new Error(" "))).toEqual({ why: "no reason was given." });
    expect(unread("cut")).toEqual({ why: "cut" });
  });
});

describe("what is said at the field", () => {
  const br0 = (host: string) => ({ bridges: [{ name: "br0", host }] });
  const answers: Answers = { hv4: { why: "No." }, hv3: br0("hv3"), hv2: { why: "hv2 does not answer." }, hv1: br0("hv1") };

  it("names each host whose bridges are not known, with the reason", () => {
    expect(unoffered(answers, ["hv1", "hv2", "hv3", "hv4"])).toBe(
      "The bridges of hv2 could not be read: hv2 does not answer.\nThe bridges of hv4 could not be read: No.",
    );
  });

  it("is nothing while all is known, or nothing has come yet", () => {
    expect(unoffered({ hv1: br0("hv1"), hv2: { bridges: [] } }, ["hv1", "hv2"])).toBe("");
    expect(unoffered({}, ["hv1"])).toBe("");
  });

  it("says that not all hosts were asked", () => {
    const many = Array.from({ length: 9 }, (_, number) => `hv${number}`);
    expect(unoffered({}, many)).toBe("Of 9 hosts only hv0, hv1, hv2, hv3, hv4, hv5, hv6, hv7 were asked for their bridges.");
    expect(unoffered({}, many.slice(1))).toBe("");
  });

  it("goes with the bridges that are known, and whose they are", () => {
    expect(known(answers)).toEqual({
      bridges: [
        { name: "br0", host: "hv1" },
        { name: "br0", host: "hv3" },
      ],
      hosts: ["hv1", "hv3"],
    });
  });
});
