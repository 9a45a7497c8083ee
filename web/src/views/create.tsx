// A form over hypervisor.create: what the chosen host has is offered, and each error stands at its field.
import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";
import { advised } from "../data/advice";
import * as api from "../data/api";
import { act, outcome } from "../data/activity";
import { BLANK, check, declaration, placed, type Errors, type Field as Name, type Form } from "../data/declaration";
import { bytes } from "../data/format";
import { record, text } from "../data/model";
import { guests, hosts, may, tables } from "../data/store";
import { go } from "../route";
import { described, Empty, Field } from "../parts/basics";

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

function Hardware(props: Props & { bridges: readonly string[] }) {
  const { form, bridges } = props;
  const pools = [...tables.value.pools.values()].filter((pool) => pool.host === form.host);
  const networks = [...tables.value.networks.values()].filter((network) => network.host === form.host);
  return (
    <fieldset>
      <legend>Hardware</legend>
      <div class="pair">
        <Text {...props} name="cpus" label="CPUs" />
        <Text {...props} name="memory" label="Memory in MiB" />
      </div>
      <div class="pair">
        {form.from === "disk" ? null : <Text {...props} name="disk" label="Disk in GiB" />}
        <Choice {...props} name="pool" label="Storage">
          <option value="">the host's folder of images</option>
          {pools.map((pool) => (
            <option key={pool.name} value={pool.name}>
              {pool.name} ({pool.type}, {bytes(pool.available_bytes)} free)
            </option>
          ))}
        </Choice>
      </div>
      <div class="pair">
        <Choice {...props} name="network" label="Network" hint={form.host ? undefined : "Choose the host first."}>
          <option value="">none</option>
          {networks.map((network) => (
            <option key={network.name} value={`network ${network.name}`}>
              {network.name} ({network.mode || "network"}
              {["active", "running", "unknown"].includes(network.state) ? "" : `, ${network.state}`})
            </option>
          ))}
          {bridges.map((bridge) => (
            <option key={bridge} value={`bridge ${bridge}`}>
              {bridge} (bridge)
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

/** Bridges of a host that are no network of libvirt's. */
async function bridgesOf(host: string): Promise<string[]> {
  const raw = record(await api.ask(host, "hypervisor.host_info"));
  const own = new Set([...tables.value.networks.values()].filter((one) => one.host === host).map((one) => one.bridge));
  const all = Array.isArray(raw.bridges) ? raw.bridges.map((one) => text(record(one).name)) : [];
  return all.filter((name) => name !== "" && !own.has(name));
}

function focusFirst(errors: Errors): void {
  const first = Object.keys(errors).find((name) => document.getElementById(name) !== null);
  if (first) document.getElementById(first)?.focus();
}

/** Runs the job; returns errors, or null when the guest was made. */
async function made(form: Form): Promise<Errors | null> {
  const jid = await act(`Create ${form.name} on ${form.host}`, form.host, "create", declaration(form));
  if (jid === null) return { form: "The job could not be started; the message says why." };
  const found = await outcome(jid, form.host, PATIENCE);
  if (found === null) return { form: "The host has not answered yet. The job goes on; look under Jobs." };
  return found.success ? null : placed(form, found.comment || "It could not be made, and no reason was given.");
}

// What was typed stays while one looks at something else, and when a login expires.
let kept: Form = BLANK;

export function Create() {
  const [form, setForm] = useState(kept);
  const [errors, setErrors] = useState<Errors>({});
  const [busy, setBusy] = useState(false);
  const [bridges, setBridges] = useState<string[]>([]);
  const allowed = hosts.value.filter((host) => may(host.name, "create"));

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
    setBridges([]);
    if (!form.host) return;
    let mine = true;
    bridgesOf(form.host).then(
      (found) => mine && setBridges(found),
      () => undefined,
    );
    return () => {
      mine = false;
    };
  }, [form.host]);

  const submit = async () => {
    const wrong = check(form);
    if (guests.value.some((guest) => guest.host === form.host && guest.name === form.name)) {
      wrong.name = `${form.host} has a guest of that name already.`;
    }
    setErrors(wrong);
    if (Object.keys(wrong).length > 0) {
      focusFirst(wrong);
      return;
    }
    setBusy(true);
    const refused = await made(form);
    setBusy(false);
    if (refused === null) {
      kept = BLANK;
      const guest = guests.value.find((one) => one.host === form.host && one.name === form.name);
      go(guest ? `/guest/${encodeURIComponent(guest.uuid)}` : "/overview");
    } else {
      setErrors(refused);
      focusFirst(refused);
    }
  };

  if (allowed.length === 0) return <Empty>Your roles make no guests.</Empty>;
  const advice = advised(allowed, Number(form.memory) || 0);
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
          <Choice {...props} name="host" label="Host" hint={advice ? `${advice.host} suits best: ${advice.why}.` : undefined}>
            <option value="">choose a host</option>
            {allowed.map((host) => (
              <option key={host.name} value={host.name} disabled={!host.live}>
                {host.name}
                {host.live ? "" : " (not live)"}
              </option>
            ))}
          </Choice>
        </div>
        {advice && form.host !== advice.host ? (
          <p class="aside">
            <button type="button" onClick={() => set({ host: advice.host })}>
              Use {advice.host}
            </button>
          </p>
        ) : null}
        <Text {...props} name="description" label="Description" />
        <Beginning {...props} />
        <Hardware {...props} bridges={bridges} />
        <Seed {...props} />
        {errors.form ? (
          <p class="wrong lines" role="alert">
            {errors.form}
          </p>
        ) : null}
        <div class="buttons">
          <button type="submit" class="primary" disabled={busy}>
            {busy ? `${form.host} makes it…` : "Create"}
          </button>
        </div>
      </form>
    </div>
  );
}
