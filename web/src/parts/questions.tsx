// What is asked before something is done: confirmations, the name of a guest to delete, its new size.
import { useState } from "preact/hooks";
import { act } from "../data/activity";
import { mib } from "../data/format";
import type { Guest } from "../data/model";
import { Field, described } from "./basics";
import { Dialog } from "./dialog";
import { Migrate } from "./migrate";
import { question, type Question } from "./doing";

const close = () => (question.value = null);

function Buttons({ label, danger, disabled }: { label: string; danger?: boolean; disabled?: boolean }) {
  return (
    <div class="buttons">
      <button type="button" onClick={close}>
        Cancel
      </button>
      <button type="submit" class={danger ? "danger" : "primary"} disabled={disabled}>
        {label}
      </button>
    </div>
  );
}

function submit(run: () => void) {
  return (event: Event) => {
    event.preventDefault();
    close();
    run();
  };
}

function Confirm({ asked: { action, guest } }: { asked: Question }) {
  return (
    <Dialog title={`${action.label} ${guest.name}`} onClose={close}>
      <form
        onSubmit={submit(() => void act(`${action.label} ${guest.name}`, guest.host, action.verb, { name: guest.name }))}
      >
        <p>
          <b>{guest.name}</b> on {guest.host} ends at once, as if its power were cut. What it has not written is lost.
        </p>
        <Buttons label={action.label} danger />
      </form>
    </Dialog>
  );
}

function Delete({ guest }: { guest: Guest }) {
  const [name, setName] = useState("");
  const [disks, setDisks] = useState("keep");
  return (
    <Dialog title={`Delete ${guest.name}`} onClose={close}>
      <form
        onSubmit={submit(() => void act(`Delete ${guest.name}`, guest.host, "delete", { name: guest.name, disks }))}
      >
        <p>
          The definition of <b>{guest.name}</b> on {guest.host} goes for good.
        </p>
        <fieldset class="choices">
          <legend>Its disks</legend>
          <label>
            <input type="radio" name="disks" checked={disks === "keep"} onChange={() => setDisks("keep")} />
            are kept
          </label>
          <label>
            <input type="radio" name="disks" checked={disks === "delete"} onChange={() => setDisks("delete")} />
            are deleted too, and cannot be had back
          </label>
        </fieldset>
        <Field id="delete-name" label="Type the name of the guest">
          <input
            id="delete-name"
            autocomplete="off"
            spellcheck={false}
            value={name}
            onInput={(event) => setName(event.currentTarget.value)}
          />
        </Field>
        <Buttons label="Delete" danger disabled={name !== guest.name} />
      </form>
    </Dialog>
  );
}

function Resize({ guest }: { guest: Guest }) {
  const [cpu, setCpu] = useState(String(guest.cpus ?? ""));
  const [mem, setMem] = useState(String(guest.memory_mib ?? ""));
  const wrongCpu = /^\d+$/.test(cpu) && Number(cpu) >= 1 && Number(cpu) <= 4096 ? undefined : "A number from 1 to 4096.";
  const wrongMem = /^\d+$/.test(mem) && Number(mem) >= 16 ? undefined : "MiB, a number from 16.";
  const wanted = {
    ...(Number(cpu) === guest.cpus ? {} : { cpu: Number(cpu) }),
    ...(Number(mem) === guest.memory_mib ? {} : { mem: Number(mem) }),
  };
  const nothing = Object.keys(wanted).length === 0;
  return (
    <Dialog title={`Resize ${guest.name}`} onClose={close}>
      <form
        onSubmit={submit(() => void act(`Resize ${guest.name}`, guest.host, "resize", { name: guest.name, ...wanted }))}
      >
        <Field id="resize-cpu" label="CPUs" error={wrongCpu}>
          <input
            {...described("resize-cpu", wrongCpu)}
            inputMode="numeric"
            value={cpu}
            onInput={(event) => setCpu(event.currentTarget.value)}
          />
        </Field>
        <Field id="resize-mem" label="Memory in MiB" error={wrongMem} hint={`Now ${mib(guest.memory_mib)}.`}>
          <input
            {...described("resize-mem", wrongMem, "now")}
            inputMode="numeric"
            value={mem}
            onInput={(event) => setMem(event.currentTarget.value)}
          />
        </Field>
        <p class="hint">What a running guest cannot get at once waits for its next start; the job says so.</p>
        <Buttons label="Resize" disabled={nothing || wrongCpu !== undefined || wrongMem !== undefined} />
      </form>
    </Dialog>
  );
}

export function Questions() {
  const asked = question.value;
  if (asked === null) return null;
  const key = `${asked.kind} ${asked.guest.key} ${asked.target}`;
  switch (asked.kind) {
    case "confirm":
      return <Confirm key={key} asked={asked} />;
    case "delete":
      return <Delete key={key} guest={asked.guest} />;
    case "resize":
      return <Resize key={key} guest={asked.guest} />;
    case "migrate":
      return <Migrate key={key} guest={asked.guest} target={asked.target} onClose={close} />;
  }
}
