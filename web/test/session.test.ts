import { beforeEach, describe, expect, it, vi } from "vitest";
import * as api from "../src/data/api";
import { activities, complain } from "../src/data/activity";
import { begin, end, expire, expired, session } from "../src/data/session";
import { guestByUuid, loaded, tables } from "../src/data/store";
import { question, type Question } from "../src/parts/doing";
import { guest, host, inventory } from "./records";

const web = guest({ host: "hv1", uuid: "u1", name: "web" });
const asked: Question = { kind: "confirm", action: { verb: "power_off", label: "Force off" }, guest: web, target: "" };

/** Logs somebody in who has seen a guest, was told of a failure and is asked something. */
function busy(): void {
  begin({ user: "otto", token: "a1" });
  tables.value = inventory([host("hv1")], [web]);
  loaded.value = true;
  complain("Start web", new Error("no"));
  question.value = asked;
}

function left(): unknown[] {
  return [tables.value.guests.size, loaded.value, activities.value.length, question.value];
}

beforeEach(() => {
  vi.stubGlobal("sessionStorage", { getItem: () => null, setItem: () => undefined, removeItem: () => undefined });
  end();
});

describe("who leaves", () => {
  it("leaves nothing to the next at the same page", () => {
    busy();
    end();
    expect(left()).toEqual([0, false, 0, null]);
    busy();
    expire();
    begin({ user: "anna", token: "b2" });
    expect(left()).toEqual([0, false, 0, null]);
  });

  it("finds everything again after a login that has expired", () => {
    busy();
    expire();
    expect(expired.value).toBe(true);
    begin({ user: "otto", token: "a2" });
    expect(left()).toEqual([1, true, 1, asked]);
  });

  it("has left at once, whether the server answers or not", async () => {
    const sent: RequestInit[] = [];
    let answer: ((response: Response) => void) | undefined;
    vi.stubGlobal("fetch", (_: string, init: RequestInit) => {
      sent.push(init);
      return new Promise<Response>((resolve) => (answer = resolve));
    });
    busy();
    const done = api.logout();
    expect(session.value).toBeNull();
    expect(new Headers(sent[0]?.headers).get("X-Auth-Token")).toBe("a1");
    answer?.(new Response("", { status: 401 }));
    await done;
    expect(expired.value).toBe(false);
    vi.unstubAllGlobals();
  });
});

describe("a guest that two hosts have", () => {
  const old = guest({ host: "hv1", uuid: "u2", state: "running" });
  const fresh = guest({ host: "hv2", uuid: "u2", state: "running" });

  it("is where it was started since the other one is not heard any more", () => {
    tables.value = inventory([host("hv1", { live: false }), host("hv2")], [old, fresh]);
    expect(guestByUuid("u2")?.host).toBe("hv2");
    tables.value = inventory([host("hv1", { live: false })], [old]);
    expect(guestByUuid("u2")?.host).toBe("hv1");
  });

  it("is where it runs while it moves", () => {
    tables.value = inventory([host("hv1"), host("hv2")], [{ ...old, state: "paused" }, fresh]);
    expect(guestByUuid("u2")?.host).toBe("hv2");
  });
});
