import { describe, expect, it } from "vitest";
import { BLANK, check, declaration, placed, type Form } from "../src/data/declaration";

const form = (part: Partial<Form>): Form => ({ ...BLANK, host: "hv1", name: "web1", image: "salt://a.qcow2", ...part });

describe("a declaration", () => {
  it("is an image with a disk on top", () => {
    expect(declaration(form({ pool: "vms", network: "network net0", cpus: "2", memory: "2048" }))).toEqual({
      name: "web1",
      ensure: "running",
      cpu: 2,
      mem: 2048,
      disks: [{ name: "system", pool: "vms", size: 10240, image: "salt://a.qcow2" }],
      graphics: { type: "vnc" },
      serial: { type: "pty" },
      autostart: false,
      interfaces: [{ name: "eth0", type: "network", source: "net0" }],
    });
  });

  it("boots from an ISO, from the network, or from a disk that is there", () => {
    expect(declaration(form({ from: "iso", iso: "/i.iso" }))).toMatchObject({
      disks: [{ name: "system", size: 10240 }, { name: "media", device: "cdrom", image: "/i.iso" }],
      boot_dev: ["cdrom", "hd"],
    });
    expect(declaration(form({ from: "pxe", network: "bridge br0" }))).toMatchObject({
      boot_dev: ["network", "hd"],
      interfaces: [{ type: "bridge", source: "br0" }],
    });
    expect(declaration(form({ from: "disk", existing: "old.qcow2", pool: "vms" }))).toMatchObject({
      disks: [{ name: "system", pool: "vms", source_file: "old.qcow2" }],
    });
  });

  it("brings a user and a key by cloud-init", () => {
    const made = declaration(form({ cloudInit: true, user: "ada", key: "ssh-ed25519 AAAA ada\n", hostname: "w.example" }));
    expect(made.cloud_init).toEqual({
      hostname: "w.example",
      user_data: {
        users: [
          "default",
          {
            name: "ada",
            sudo: "ALL=(ALL) NOPASSWD:ALL",
            shell: "/bin/bash",
            ssh_authorized_keys: ["ssh-ed25519 AAAA ada"],
          },
        ],
      },
    });
  });
});

describe("a check", () => {
  it("finds nothing wrong with what is right", () => {
    expect(check(form({}))).toEqual({});
  });

  it.each([
    ["host", { host: "" }],
    ["name", { name: "-x" }],
    ["name", { name: "a b" }],
    ["cpus", { cpus: "0" }],
    ["cpus", { cpus: "1e3" }],
    ["memory", { memory: "8" }],
    ["disk", { disk: "" }],
    ["image", { image: "debian" }],
    ["imageHash", { image: "https://example.org/a.qcow2" }],
    ["imageHash", { image: "https://example.org/a.qcow2", imageHash: "md5=1" }],
    ["iso", { from: "iso" as const }],
    ["network", { from: "pxe" as const }],
    ["existing", { from: "disk" as const }],
    ["user", { cloudInit: true, user: "Ada" }],
    ["user", { cloudInit: true, key: "ssh-ed25519 AAAA" }],
    ["key", { cloudInit: true, user: "ada", key: "not a key" }],
    ["hostname", { cloudInit: true, hostname: "-a" }],
  ])("says at %s what is wrong: %o", (field, part) => {
    expect(Object.keys(check(form(part)))).toContain(field);
  });
});

describe("messages of the host", () => {
  it("go to the field that they speak of", () => {
    const message = [
      "nothing was made:",
      "disks:0:image: '/etc/shadow' is in no storage pool of this host",
      "mem: 4 is less than 16",
      "mem: and again",
      "something else",
    ].join("\n");
    expect(placed(form({}), message)).toEqual({
      image: "disks:0:image: '/etc/shadow' is in no storage pool of this host",
      memory: "mem: 4 is less than 16\nmem: and again",
      form: "something else",
    });
    expect(Object.keys(placed(form({}), "there is a guest web1 on this host already"))).toEqual(["name"]);
  });
});

describe("a host that is chosen", () => {
  it("need not be named, and what is said of hosts stands there", () => {
    expect(check({ ...form({}), host: "" }, true)).toEqual({});
    expect(placed(form({}), "no host takes web1; nothing was made")).toEqual({
      host: "no host takes web1; nothing was made",
    });
    const said = "web1 was not made on hv2: ERROR: nothing was made:\ndisks:0:pool: vms is not active";
    expect(placed(form({}), said)).toEqual({ pool: "disks:0:pool: vms is not active" });
  });
});
