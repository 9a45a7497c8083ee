// A form over hypervisor.create: what the chosen host has is offered, and each error stands at its field.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import * as api from "../data/api";
import { act, actFleet, ended, outcome } from "../data/activity";
import { bridgesIn, known, MOST_ASKED, unoffered, unread, type Answers } from "../data/bridges";
import { BLANK, check, declaration, placed, type Errors, type Field as Name, type Form } from "../data/declaration";
import { bytes } from "../data/format";
import type { Host, Job } from "../data/model";
import { whenLeft } from "../data/session";
import { guests, hosts, may, tables } from "../data/store";
import { go } from "../route";
import { described, Empty, Field } from "../parts/basics";
import { Reasons } from "../parts/progress";

const PATIENCE = 20 * 60_000; // milliseconds; an image may be large

interface Props {
  form: Form;
  errors: Errors;
  set: (change: Partial<Form>) => void;
}

type TextProps = Props & { name: Name; label: string; hint?: string; placeholder?: string };

function Text({ form, errors, set, name, label, hint, placeholder }: TextProps) {
  return (
    <Field id={name} label={label} error={errors[name]} hint={hint}>
      <input
        {...described(name, errors[name], hint)}
        autocomplete="off"
        spellcheck={false}
        placeholder={placeholder}
        value={String(form[name])}
        onInput={(event) => set({ [name]: event.currentTarget.value })}
      />
    </Field>
  );
}

type ChoiceProps = Props & { name: Name; label: string; hint?: string | undefined; children: ComponentChildren };

function Choice({ form, errors, set, name, label, hint, children }: ChoiceProps) {
  return (
    <Field id={name} label={label} error={errors[name]} hint={hint}>
      <select
        {...described(name, errors[name], hint)}
        value={String(form[name])}
        onChange={(event) => set({ [name]: event.currentTarget.value })}
      >
        {children}
      </select>
    </Field>
  );
}

function Check({ form, set, name, label }: Omit<Props, "errors"> & { name: "cloudInit" | "autostart"; label: string }) {
  return (
    <label class="check">
      <input type="checkbox" checked={form[name]} onChange={(event) => set({ [name]: event.currentTarget.checked })} />
      {label}
    </label>
  );
}

const BEGINNINGS: readonly [Form["from"], string][] = [
  ["image", "Disk image"],
  ["iso", "ISO"],
  ["pxe", "Network (PXE)"],
  ["disk", "Disk that is there"],
];

function Beginning(props: Props) {
  const { form, set } = props;
  return (
    <fieldset>
      <legend>Begins from</legend>
      <div class="segments" role="group" aria-label="Begins from">
        {BEGINNINGS.map(([from, label]) => (
          <button key={from} type="button" aria-pressed={form.from === from} onClick={() => set({ from })}>
            {label}
          </button>
        ))}
      </div>
      {form.from === "image" ? (
        <>
          <Text
            {...props}
            name="image"
            label="Image"
            placeholder="salt://images/debian-12.qcow2"
            hint="A path on the host in a storage pool or the folder of images, or salt://, http://, https://. The new disk keeps only what differs from it."
          />
          {/^https?:/.test(form.image) ? (
            <Text {...props} name="imageHash" label="Checksum" placeholder="sha256=…" />
          ) : null}
        </>
      ) : null}
      {form.from === "iso" ? (
        <Text {...props} name="iso" label="ISO" hint="A path on the host in a storage pool or the folder of images." />
      ) : null}
      {form.from === "disk" ? (
        <Text {...props} name="existing" label="Disk" hint="A path, or the name of a volume in the pool." />
      ) : null}
      {form.from === "pxe" ? <p class="hint">The network below must serve the boot.</p> : null}
    </fieldset>
  );
}

/** One of each name; how many of the hosts have it is said where that is not all of them. */
function named<Item extends { name: string; host: string }>(items: Iterable<Item>, places: readonly string[]) {
  const found = new Map<string, Item[]>();
  for (const item of items) {
    if (places.includes(item.host)) found.set(item.name, [...(found.get(item.name) ?? []), item]);
  }
  return [...found.values()].flatMap((all) => {
    const [first] = all;
    const where = all.length < places.length ? `; on ${all.map((one) => one.host).join(", ")} alone` : "";
    return first ? [{ ...first, where, single: all.length === 1 }] : [];
  });
}

function Hardware(props: Props & { answers: Answers; places: readonly string[] }) {
  const { answers, places } = props;
  const told = known(answers);
  const pools = named(tables.value.pools.values(), places);
  const networks = named(tables.value.networks.values(), places);
  return (
    <fieldset>
      <legend>Hardware</legend>
      <div class="pair">
        <Text {...props} name="cpus" label="CPUs" />
        <Text {...props} name="memory" label="Memory in MiB" />
      </div>
      <div class="pair">
        {props.form.from === "disk" ? null : <Text {...props} name="disk" label="Disk in GiB" />}
        <Choice {...props} name="pool" label="Storage">
          <option value="">the host's folder of images</option>
          {pools.map((pool) => (
            <option key={pool.name} value={pool.name}>
              {pool.name} ({pool.type}
              {pool.single ? `, ${bytes(pool.available_bytes)} free` : ""}){pool.where}
            </option>
          ))}
        </Choice>
      </div>
      <div class="pair">
        <Choice {...props} name="network" label="Network" hint={unoffered(answers, places) || undefined}>
          <option value="">none</option>
          {networks.map((network) => (
            <option key={network.name} value={`network ${network.name}`}>
              {network.name} ({network.mode || "network"}
              {["active", "running", "unknown"].includes(network.state) ? "" : `, ${network.state}`}){network.where}
            </option>
          ))}
          {named(told.bridges, told.hosts).map((bridge) => (
            <option key={bridge.name} value={`bridge ${bridge.name}`}>
              {bridge.name} (bridge){bridge.where}
            </option>
          ))}
        </Choice>
        <Choice {...props} name="firmware" label="Firmware">
          <option value="">as the host has it</option>
          <option value="bios">BIOS</option>
          <option value="uefi">UEFI</option>
        </Choice>
      </div>
    </fieldset>
  );
}

function Seed(props: Props) {
  return (
    <fieldset>
      <legend>First start</legend>
      <Check {...props} name="cloudInit" label="cloud-init sets it up" />
      {props.form.cloudInit ? (
        <>
          <Text {...props} name="hostname" label="Host name" placeholder={props.form.name} />
          <Text {...props} name="user" label="User" />
          <Field id="key" label="The user's public ssh key" error={props.errors.key}>
            <textarea
              {...described("key", props.errors.key)}
              rows={3}
              spellcheck={false}
              placeholder="ssh-ed25519 AAAA… name"
              value={props.form.key}
              onInput={(event) => props.set({ key: event.currentTarget.value })}
            />
          </Field>
        </>
      ) : null}
      <Check {...props} name="autostart" label="Starts with its host" />
      <Choice {...props} name="ensure" label="Then">
        <option value="running">start it</option>
        <option value="defined">leave it shut off</option>
      </Choice>
    </fieldset>
  );
}

async function bridgesOf(host: string) {
  const networks = [...tables.value.networks.values()].filter((one) => one.host === host);
  try {
    return bridgesIn(host, await api.ask(host, "hypervisor.host_info"), new Set(networks.map((one) => one.bridge)));
  } catch (error) {
    return unread(error);
  }
}

function focusFirst(errors: Errors): void {
  const first = Object.keys(errors).find((name) => document.getElementById(name) !== null);
  if (first) document.getElementById(first)?.focus();
}

const NOT_STARTED: Errors = { form: "The job could not be started; the message says why." };

/** Has the master choose a host and make the guest there; returns errors, or null when the guest was made. */
async function madeSomewhere(form: Form): Promise<Errors | null> {
  const jid = await actFleet(`Create ${form.name}`, "create", declaration(form));
  if (jid === null) return NOT_STARTED;
  const job = await ended(jid, PATIENCE);
  if (!job?.outcome) return { form: "The master has not answered yet. The job goes on; look under Jobs." };
  if (job.outcome.success) return null;
  const errors = placed(form, job.outcome.comment || "It could not be made, and no reason was given.");
  const reasons = Object.entries(job.progress[0]?.against ?? {}).map(([host, all]) => `${host}: ${all.join("; ")}`);
  return errors.host ? { ...errors, host: [errors.host, ...reasons].join("\n") } : errors;
}

/** Runs the job; returns errors, or null when the guest was made. */
async function made(form: Form): Promise<Errors | null> {
  if (!form.host) return madeSomewhere(form);
  const jid = await act(`Create ${form.name} on ${form.host}`, form.host, "create", declaration(form));
  if (jid === null) return NOT_STARTED;
  const found = await outcome(jid, form.host, PATIENCE);
  if (found === null) return { form: "The host has not answered yet. The job goes on; look under Jobs." };
  return found.success ? null : placed(form, found.comment || "It could not be made, and no reason was given.");
}

/** Asks the master which host it would be, and why. */
async function askedFor(form: Form): Promise<Job | string> {
  try {
    const jid = await api.startFleet("fleet.create", { ...declaration(form), test: true });
    return (await ended(jid, PATIENCE)) ?? "The master has not answered yet.";
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

/** The host that the master would choose, asked for on demand. */
function Chosen({ form }: { form: Form }) {
  const [answer, setAnswer] = useState<Job | string>("");
  const [busy, setBusy] = useState(false);
  const ready = Object.keys(check(form, true)).length === 0;
  const about = JSON.stringify(declaration(form));
  // An answer is one to what was asked, and not to what was typed meanwhile.
  const latest = useRef(about);
  latest.current = about;
  useEffect(() => setAnswer(""), [about]);
  const ask = async () => {
    setBusy(true);
    const found = await askedFor(form);
    if (latest.current === about) setAnswer(found);
    setBusy(false);
  };
  const step = typeof answer === "string" ? undefined : answer.progress[0];
  return (
    <div class="aside">
      <button type="button" disabled={!ready || busy} onClick={() => void ask()}>
        {busy ? "Asking the hosts…" : "Which host would it be?"}
      </button>
      <div role="status">
        {typeof answer === "string" ? answer : <p class="lines">{answer.outcome?.comment}</p>}
        {step ? <Reasons against={step.against} /> : null}
      </div>
    </div>
  );
}

// What was typed stays while one looks at something else, and when a login expires.
let kept: Form = BLANK;
whenLeft(() => (kept = BLANK));

const CHOICE = "The emptiest host that it fits on; the job says which, and why.";

function note(host: Host): string {
  if (!host.live) return " (not live)";
  return host.evacuated ? " (evacuated)" : "";
}

export function Create() {
  const [form, setForm] = useState(kept);
  const [errors, setErrors] = useState<Errors>({});
  const [busy, setBusy] = useState(false);
  const [answers, setAnswers] = useState<Answers>({});
  const here = useRef(true);
  useEffect(
    () => () => {
      here.current = false;
    },
    [],
  );
  const allowed = hosts.value.filter((host) => may(host.name, "create"));
  // Where the roles let the master choose, it chooses among these.
  const choosing = hosts.value.filter((host) => host.live && may(host.name, "fleet.create")).map((host) => host.name);
  const places = form.host ? [form.host] : choosing;

  const set = (change: Partial<Form>) => {
    kept = { ...form, ...change };
    setForm(kept);
    setErrors((before) => {
      const left = { ...before };
      for (const name of Object.keys(change)) Reflect.deleteProperty(left, name);
      return left;
    });
  };

  useEffect(() => {
    setAnswers({});
    let mine = true;
    for (const place of places.slice(0, MOST_ASKED)) {
      void bridgesOf(place).then((answer) => mine && setAnswers((before) => ({ ...before, [place]: answer })));
    }
    return () => {
      mine = false;
    };
  }, [places.join(" ")]);

  const submit = async () => {
    const wrong = check(form, choosing.length > 0);
    const other = guests.value.find((guest) => places.includes(guest.host) && guest.name === form.name);
    if (other) wrong.name = `${other.host} has a guest of that name already.`;
    setErrors(wrong);
    if (Object.keys(wrong).length > 0) {
      focusFirst(wrong);
      return;
    }
    setBusy(true);
    const refused = await made(form);
    // What was typed meanwhile is about another guest.
    if (refused === null && kept === form) kept = BLANK;
    // Whoever went elsewhere stays there: the message tells how it ended.
    if (!here.current) return;
    setBusy(false);
    if (refused === null) {
      const guest = guests.value.find((one) => places.includes(one.host) && one.name === form.name);
      go(guest ? `/guest/${encodeURIComponent(guest.uuid)}` : "/overview");
    } else {
      setErrors(refused);
      focusFirst(refused);
    }
  };

  if (allowed.length === 0) return <Empty>Your roles make no guests.</Empty>;
  const props = { form, errors, set };
  return (
    <div class="page page-form">
      <h1>Create a guest</h1>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (!busy) void submit();
        }}
        noValidate
      >
        <div class="pair">
          <Text {...props} name="name" label="Name" />
          <Choice {...props} name="host" label="Host" hint={choosing.length > 0 && !form.host ? CHOICE : undefined}>
            <option value="">{choosing.length > 0 ? "chosen for you" : "choose a host"}</option>
            {allowed.map((host) => (
              <option key={host.name} value={host.name} disabled={!host.live}>
                {host.name}
                {note(host)}
              </option>
            ))}
          </Choice>
        </div>
        {choosing.length > 0 && !form.host ? <Chosen form={form} /> : null}
        <Text {...props} name="description" label="Description" />
        <Beginning {...props} />
        <Hardware {...props} answers={answers} places={places} />
        <Seed {...props} />
        {errors.form ? (
          <p class="wrong lines" role="alert">
            {errors.form}
          </p>
        ) : null}
        <div class="buttons">
          <button type="submit" class="primary" disabled={busy}>
            {busy ? `${form.host || "A host"} makes it…` : "Create"}
          </button>
        </div>
      </form>
    </div>
  );
}
