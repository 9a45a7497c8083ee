import { describe, expect, it } from "vitest";
import { offered } from "../src/data/actions";
import { bytes, duration, mib, share } from "../src/data/format";
import { issues } from "../src/data/issues";
import { concerns, counted, lastOfHost, stepKind, verdict } from "../src/data/jobs";
import { applied, readChange, readEvents, readSnapshot } from "../src/data/model";
import { EventReader, type ServerEvent } from "../src/data/sse";
import { parse } from "../src/route";
import { base64url, door, hex } from "../src/console/ticket";
import { guest, host, inventory, job } from "./records";

describe("what the inventory says", () => {
  const raw = {
    revision: 7,
    user: { name: "otto", functions: { hv1: ["hypervisor.start"] } },
    hosts: { hv1: { name: "hv1", live: true, problems: ["a", 3, null] } },
    guests: { "hv1/u1": { host: "hv1", uuid: "u1", name: "<b>web</b>", state: "shut_off", addresses: "none" } },
  };

  it("is read whatever is missing or of another type", () => {
    const { revision, user, tables } = readSnapshot(raw);
    expect(revision).toBe(7);
    expect(user.functions.hv1).toEqual(["hypervisor.start"]);
    expect(tables.guests.get("hv1/u1")).toMatchObject({ name: "<b>web</b>", state: "shut off", addresses: [], cpus: null });
    expect(tables.hosts.get("hv1")?.problems).toEqual(["a", "3"]);
    expect(readSnapshot(null).tables.guests.size).toBe(0);
    expect(readSnapshot([1, "x"]).user.name).toBe("");
  });

  it("has a guest's events, whatever else is among them", () => {
    const row = { at: "2026", host: "hv1", what: "started" };
    expect(readEvents({ events: [row, null, { what: 7 }] })).toEqual([
      row,
      { at: "", host: "", what: "" },
      { at: "", host: "", what: "7" },
    ]);
    expect(readEvents("none")).toEqual([]);
  });

  it("changes by what is set and what is gone, and nothing else becomes a new object", () => {
    const before = readSnapshot(raw).tables;
    const change = readChange({
      revision: 8,
      set: { guests: { "hv2/u1": { host: "hv2", uuid: "u1", name: "web", state: "running" } } },
      gone: { guests: ["hv1/u1"] },
    });
    const after = applied(before, change);
    expect([...after.guests.keys()]).toEqual(["hv2/u1"]);
    expect(after.hosts).toBe(before.hosts);
    expect(before.guests.has("hv1/u1")).toBe(true);
  });
});

describe("events", () => {
  const whole = "id: 4\r\nevent: change\r\ndata: {\"a\":\r\ndata: 1}\r\n\r\n: keepalive\n\nevent: resync\ndata: {}\n\n";

  it("are the same however the stream is cut", () => {
    for (let size = 1; size < whole.length; size += 1) {
      const found: ServerEvent[] = [];
      const reader = new EventReader((event) => found.push(event));
      for (let at = 0; at < whole.length; at += size) reader.feed(whole.slice(at, at + size));
      expect(found).toEqual([
        { id: "4", event: "change", data: '{"a":\n1}' },
        { id: "4", event: "resync", data: "{}" },
      ]);
    }
  });
});

describe("what is offered", () => {
  const all = () => true;

  it("fits the state", () => {
    const verbs = (state: string) => offered(guest({ state }), all, 2).map((action) => action.verb);
    expect(verbs("running")).toEqual(["shutdown", "reboot", "suspend", "power_off", "migrate", "resize"]);
    expect(verbs("shut off")).toEqual(["start", "migrate", "resize", "delete"]);
    expect(verbs("paused")).toEqual(["resume", "power_off", "migrate", "resize"]);
  });

  it("is what the roles allow on that host", () => {
    const may = (name: string, verb: string) => name === "hv1" && verb === "start";
    expect(offered(guest({ state: "shut off", host: "hv1" }), may, 2).map((one) => one.verb)).toEqual(["start"]);
    expect(offered(guest({ state: "shut off", host: "hv2" }), may, 2)).toEqual([]);
  });

  it("is no move where there is one host", () => {
    expect(offered(guest({}), all, 1).some((action) => action.verb === "migrate")).toBe(false);
  });
});

describe("issues", () => {
  const now = Date.parse("2026-11-28T13:00:00Z");

  it("are hosts, guests and jobs that need a person, the grave first", () => {
    const failed = { success: false, state: "", comment: "no", possible: null, reasons: [] };
    const found = issues(
      inventory(
        [host("hv1", { problems: ["certificate ends"] }), host("hv2", { live: false })],
        [guest({ name: "web", state: "crashed" }), guest({})],
        [
          job("1", { outcomes: { hv1: failed } }),
          job("2", { outcomes: { hv1: failed }, kwarg: { test: true } }),
          job("3", { outcomes: { hv1: failed }, started: "2026-11-01T00:00:00Z" }),
          job("5", { outcomes: { hv1: failed }, function: "wsproxy.start" }),
          job("4", { outcomes: { hv1: { ...failed, success: true } } }),
        ],
      ),
      now,
    );
    expect(found.map((issue) => [issue.grave, issue.what])).toEqual([
      [true, "hv2 is not heard from"],
      [true, "web has crashed"],
      [false, "hv1 has a problem"],
      [false, "start of web1 on hv1 failed"],
    ]);
  });

  it("are none where all is well", () => {
    expect(issues(inventory([host("hv1")], [guest({})]), now)).toEqual([]);
  });
});

describe("jobs of the runner", () => {
  const raw = {
    jid: "9", user: "otto", function: "fleet.evacuate", guest: null, hosts: ["hv1", "hv2"], kwarg: { host: "hv1" },
    outcomes: {}, outcome: null,
    progress: [
      { guest: "web", step: "moving", from: "hv1", to: "hv2", text: "" },
      { guest: "db", step: "stays", from: "hv1", text: "stays on hv1", against: { hv2: ["device: a card", 7, null] } },
    ],
  };
  const read = (over: object) => [...readSnapshot({ jobs: { 9: { ...raw, ...over } } }).tables.jobs.values()];

  it("have progress and one outcome", () => {
    const [job] = read({});
    expect(job?.progress).toEqual([
      { guest: "web", step: "moving", from: "hv1", to: "hv2", text: "", against: {} },
      { guest: "db", step: "stays", from: "hv1", to: "", text: "stays on hv1", against: { hv2: ["device: a card", "7"] } },
    ]);
    expect(job && [verdict(job), counted(job.progress), concerns(job, "db"), concerns(job, "x")]).toEqual([
      "running", "1 moving, 1 stays", true, false,
    ]);
    expect(job?.progress.map(stepKind)).toEqual(["running", "failed"]);
    expect(read({ outcome: { success: true } }).map(verdict)).toEqual(["done"]);
    expect(read({ outcome: { success: false, comment: "1 of 2" } }).map(verdict)).toEqual(["failed"]);
    expect(read({ progress: "none", hosts: 3 }).map((one) => [one.progress, verdict(one)])).toEqual([[[], "running"]]);
  });

  it("are found by their host, questions left out", () => {
    const question = job("11", { function: "fleet.evacuate", kwarg: { host: "hv1", test: true } });
    const all = [...read({}), question, job("10"), ...read({ jid: "8", function: "fleet.restore" })];
    expect(lastOfHost(all, "hv1")?.jid).toBe("9");
    expect(lastOfHost(all, "hv2")).toBeUndefined();
  });

  it("stand among what needs a person where they failed", () => {
    const found = read({ started: "2026-11-28T12:00:00Z", outcome: { success: false, comment: "1 of 2 guests moved" } });
    const [issue] = issues(inventory([host("hv1")], [], found), Date.parse("2026-11-28T13:00:00Z"));
    expect([issue?.what, issue?.why]).toEqual(["evacuate of hv1 failed", "1 of 2 guests moved"]);
  });

  it("say that a host is evacuated", () => {
    const hosts = { hv1: { evacuated: { since: "2026", user: "otto", guests: 2 } }, hv2: { evacuated: null } };
    const read = [...readSnapshot({ hosts }).tables.hosts.values()].map((one) => one.evacuated);
    expect(read).toEqual([{ since: "2026", user: "otto", guests: 2 }, null]);
  });
});

describe("figures", () => {
  it("are as people read them", () => {
    expect(bytes(0)).toBe("0 B");
    expect(bytes(1536)).toBe("1.5 KiB");
    expect(mib(2048)).toBe("2 GiB");
    expect(mib(null)).toBe("–");
    expect(duration(59)).toBe("59 s");
    expect(duration(3 * 3600 + 61)).toBe("3 h 1 min");
    expect(duration(90061)).toBe("1 d 1 h");
    expect(share(5, 0)).toBeNull();
    expect(share(9, 3)).toBe(1);
  });
});

describe("places", () => {
  it("are read from any address", () => {
    expect(parse("")).toEqual({ view: "overview", name: "" });
    expect(parse("#/guest/a%2Fb")).toEqual({ view: "guest", name: "a/b" });
    expect(parse("#/host/%E0%A4%A")).toEqual({ view: "host", name: "%E0%A4%A" });
  });
});

describe("tickets", () => {
  it("go into the name of a protocol and never into an address", () => {
    const ticket = new Uint8Array(32).fill(0xfb);
    const { url, protocols } = door({ protocol: "https:", host: "cloud:8443" }, "hv1", ticket);
    expect(url).toBe("wss://cloud:8443/websockify/hv1");
    expect(protocols).toEqual(["binary", `ticket.${base64url(ticket)}`]);
    expect(base64url(ticket)).toMatch(/^[A-Za-z0-9_-]{43}$/);
    expect(hex(new Uint8Array([0, 255, 16]))).toBe("00ff10");
  });
});
