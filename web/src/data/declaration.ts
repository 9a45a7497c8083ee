// The form for a new guest becomes a declaration for hypervisor.create, and its errors go back to the fields.

export interface Form {
  host: string;
  name: string;
  description: string;
  cpus: string;
  memory: string;
  /** What it begins from. */
  from: "image" | "iso" | "pxe" | "disk";
  image: string;
  imageHash: string;
  iso: string;
  existing: string;
  disk: string;
  pool: string;
  /** "bridge br0", "network net0", or nothing for no interface. */
  network: string;
  firmware: "" | "bios" | "uefi";
  cloudInit: boolean;
  hostname: string;
  user: string;
  key: string;
  autostart: boolean;
  ensure: "running" | "defined";
}

export type Field = keyof Form;
export type Errors = Partial<Record<Field | "form", string>>;

export const BLANK: Form = {
  host: "",
  name: "",
  description: "",
  cpus: "1",
  memory: "1024",
  from: "image",
  image: "",
  imageHash: "",
  iso: "",
  existing: "",
  disk: "10",
  pool: "",
  network: "",
  firmware: "",
  cloudInit: false,
  hostname: "",
  user: "",
  key: "",
  autostart: false,
  ensure: "running",
};

const NAME = /^[A-Za-z0-9_][A-Za-z0-9_.+:@-]{0,127}$/;
const SOURCE = /^(salt:\/\/|https?:\/\/|\/)[^"&<>\\\s]+$/;
const HASH = /^(sha256[=:][0-9A-Fa-f]{64}|sha512[=:][0-9A-Fa-f]{128})$/;
const USER = /^[a-z_][a-z0-9_-]{0,31}$/;
const KEY = /^(ssh-(ed25519|rsa)|ecdsa-sha2-nistp(256|384|521)|sk-[a-z0-9@.-]+) [A-Za-z0-9+/=]+( .*)?$/;
const HOSTNAME = /^(?=.{1,253}$)([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$/;

function whole(text: string, least: number, most: number): boolean {
  return /^\d+$/.test(text) && Number(text) >= least && Number(text) <= most;
}

function source(errors: Errors, field: "image" | "iso", given: string): void {
  if (!SOURCE.test(given)) {
    errors[field] = "A path on the host, or an address that begins with salt://, http:// or https://.";
  }
}

const BEGINNINGS: Record<Form["from"], (form: Form, errors: Errors) => void> = {
  image: (form, errors) => {
    source(errors, "image", form.image);
    if (/^https?:/.test(form.image) && !form.imageHash) errors.imageHash = "An image from the web needs its checksum.";
    if (form.imageHash && !HASH.test(form.imageHash)) errors.imageHash = "sha256= or sha512=, and the digits.";
  },
  iso: (form, errors) => source(errors, "iso", form.iso),
  pxe: (form, errors) => {
    if (!form.network) errors.network = "To boot from the network a guest needs an interface.";
  },
  disk: (form, errors) => {
    if (!form.existing) errors.existing = "A path, or the name of a volume in the pool.";
  },
};

function cloudInit(form: Form, errors: Errors): void {
  if (form.hostname && !HOSTNAME.test(form.hostname)) errors.hostname = "Letters, digits, hyphens and dots.";
  if (form.user && !USER.test(form.user)) errors.user = "Small letters, digits, _ and -.";
  if (form.key && !KEY.test(form.key.trim())) errors.key = "The public key in one line, as in a file that ends with .pub.";
  if (form.key && !form.user) errors.user = "Whose key it is.";
}

/** Says what is wrong with a form, as far as that is known before anybody is asked; a host may be chosen for it. */
export function check(form: Form, chosen = false): Errors {
  const errors: Errors = {};
  if (!form.host && !chosen) errors.host = "Choose a host.";
  if (!NAME.test(form.name)) errors.name = "Letters, digits and _ . + : @ -, not beginning with a sign.";
  if (!whole(form.cpus, 1, 4096)) errors.cpus = "A number from 1 to 4096.";
  if (!whole(form.memory, 16, 33554432)) errors.memory = "MiB, a number from 16.";
  if ((form.from !== "disk" || form.disk) && !whole(form.disk, 1, 1048576)) {
    errors.disk = "GiB, a number from 1.";
  }
  BEGINNINGS[form.from](form, errors);
  if (form.cloudInit) cloudInit(form, errors);
  return errors;
}

type Plain = Record<string, unknown>;

function disks(form: Form): Plain[] {
  const main: Plain = { name: "system", ...(form.pool ? { pool: form.pool } : {}) };
  if (form.disk) main.size = Number(form.disk) * 1024;
  if (form.from === "image") {
    main.image = form.image;
    if (form.imageHash) main.image_hash = form.imageHash;
  }
  if (form.from === "disk") {
    main.source_file = form.existing;
    delete main.size;
    if (form.existing.startsWith("/")) delete main.pool;
  }
  return form.from === "iso" ? [main, { name: "media", device: "cdrom", image: form.iso }] : [main];
}

function seed(form: Form): Plain {
  const person = form.key.trim()
    ? { name: form.user, sudo: "ALL=(ALL) NOPASSWD:ALL", shell: "/bin/bash", ssh_authorized_keys: [form.key.trim()] }
    : { name: form.user };
  return {
    ...(form.hostname ? { hostname: form.hostname } : {}),
    ...(form.user ? { user_data: { users: ["default", person] } } : {}),
  };
}

const BOOT: Partial<Record<Form["from"], string[]>> = { iso: ["cdrom", "hd"], pxe: ["network", "hd"] };

/** Returns the arguments of hypervisor.create. */
export function declaration(form: Form): Plain {
  const [kind = "", ...rest] = form.network.split(" ");
  return {
    name: form.name,
    ensure: form.ensure,
    cpu: Number(form.cpus),
    mem: Number(form.memory),
    disks: disks(form),
    graphics: { type: "vnc" },
    serial: { type: "pty" },
    autostart: form.autostart,
    ...(form.description ? { description: form.description } : {}),
    ...(form.network ? { interfaces: [{ name: "eth0", type: kind, source: rest.join(" ") }] } : {}),
    ...(form.firmware ? { loader: form.firmware } : {}),
    ...(BOOT[form.from] ? { boot_dev: BOOT[form.from] } : {}),
    ...(form.cloudInit ? { cloud_init: seed(form) } : {}),
  };
}

// Paths of a declaration, as the messages of hypervisor.create begin, and the field that each comes from.
const FIELDS: readonly [RegExp, (form: Form) => Field][] = [
  [/\bimage_hash\b/, () => "imageHash"],
  [/\bdisks:1|\bcdrom\b/, () => "iso"],
  [/\bdisks:0:(image|source_file)|\bimage\b/, (form) => (form.from === "disk" ? "existing" : "image")],
  [/\bdisks:0:pool|\bstorage pool\b/, () => "pool"],
  [/\bdisks(:0)?(:size)?\b/, () => "disk"],
  [/\binterfaces\b|\b(bridge|network)\b/, () => "network"],
  [/\bcloud_init:hostname\b/, () => "hostname"],
  [/\bcloud_init\b/, () => "user"],
  [/\bcpu\b/, () => "cpus"],
  [/\bmem(ory)?\b/, () => "memory"],
  [/\bloader\b|\bfirmware\b/, () => "firmware"],
  [/\bdescription\b/, () => "description"],
  [/\bthere is a guest\b|\bname\b|\bwas migrated to\b/, () => "name"],
];

// What the runner says where it finds no host.
const NO_HOST = "no host takes ";

/** Puts each line of a message at the field that it speaks of; what speaks of none stays with the form. */
export function placed(form: Form, message: string): Errors {
  const errors: Errors = {};
  for (const line of message.split("\n").map((one) => one.trim())) {
    if (!line || line.endsWith("nothing was made:")) continue;
    if (line.startsWith(NO_HOST)) {
      errors.host = line;
      continue;
    }
    const field = FIELDS.find(([pattern]) => pattern.test(line))?.[1](form) ?? "form";
    errors[field] = errors[field] ? `${errors[field]}\n${line}` : line;
  }
  return errors;
}
