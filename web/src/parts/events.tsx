// What has happened to a guest, whoever did it: told by its hosts.
import { useEffect, useState } from "preact/hooks";
import * as api from "../data/api";
import { clock } from "../data/format";
import type { Guest, Happened } from "../data/model";
import { guests } from "../data/store";
import { Empty } from "./basics";

const WORDS: Record<string, string> = {
  arrived: "came from another host",
  left: "went to another host",
  io_error: "halted: its storage failed",
  api_error: "halted: libvirt failed",
  shut_down: "shut down",
  forced_off: "forced off",
  restored: "restored from a saved state",
  pmsuspended: "put itself to sleep",
  woken: "woke up",
  failed: "failed to go on",
  watchdog: "its watchdog acted",
};
const BAD: readonly string[] = ["crashed", "failed", "io_error", "api_error", "watchdog"];
const SHOWN = 30;

export function Events({ guest }: { guest: Guest }) {
  const [rows, setRows] = useState<Happened[]>([]);
  const [wrong, setWrong] = useState("");
  // A guest that moves is on two hosts for a while, and each has something to tell.
  const told = guests.value
    .filter((one) => one.uuid === guest.uuid)
    .map((one) => `${one.host} ${one.happened ?? ""}`)
    .join(", ");
  useEffect(() => {
    let mine = true;
    api.events(guest.uuid).then(
      (found) => {
        if (!mine) return;
        setRows(found);
        setWrong("");
      },
      (error: unknown) => mine && setWrong(error instanceof Error ? error.message : String(error)),
    );
    return () => {
      mine = false;
    };
  }, [guest.uuid, told]);
  if (wrong) return <p class="wrong">{wrong}</p>;
  if (rows.length === 0) return <Empty>Nothing was seen yet.</Empty>;
  return (
    <ol class="happened">
      {rows.slice(0, SHOWN).map((row) => (
        <li key={`${row.at} ${row.host} ${row.what}`}>
          <time dateTime={row.at} class="figure">
            {clock(row.at)}
          </time>{" "}
          <span class={BAD.includes(row.what) ? "job job-failed" : "job"}>{WORDS[row.what] ?? row.what}</span>
          <span class="hint">{row.host}</span>
        </li>
      ))}
    </ol>
  );
}
