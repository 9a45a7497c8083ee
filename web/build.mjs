// Builds the page: "node build.mjs FOLDER". Everything but index.html is below assets/, named by its content, and each
// file has its compressed twin beside it. Ends with 1 when what the first paint needs is larger than it may be.
import { createHash } from "node:crypto";
import { mkdir, readFile, readdir, rename, rm, writeFile } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { gzipSync } from "node:zlib";
import * as esbuild from "esbuild";

const FIRST_PAINT = 60_000; // bytes, compressed

const here = import.meta.dirname ?? new URL(".", import.meta.url).pathname;
const target = resolve(process.argv[2] ?? join(here, "build"));
const made = `${target}.new`;

await rm(made, { recursive: true, force: true });
await mkdir(join(made, "assets"), { recursive: true });

const result = await esbuild.build({
  absWorkingDir: here,
  entryPoints: { main: "src/main.tsx", style: "src/style.css" },
  outdir: join(made, "assets"),
  entryNames: "[name]-[hash]",
  chunkNames: "[name]-[hash]",
  bundle: true,
  splitting: true,
  format: "esm",
  target: ["chrome109", "firefox115", "safari16.4"],
  jsx: "automatic",
  jsxImportSource: "preact",
  minify: true,
  legalComments: "linked",
  metafile: true,
  logLevel: "warning",
});

const outputs = Object.entries(result.metafile.outputs);
const entry = (source) => outputs.find(([, output]) => output.entryPoint === source)[0];
const [script, style] = [entry("src/main.tsx"), entry("src/style.css")];

// What main.js imports at once, directly or through another part; what it asks for later does not count.
const first = new Set();
const follow = (path) => {
  if (first.has(path)) return;
  first.add(path);
  for (const { path: next, kind } of result.metafile.outputs[path].imports) {
    if (kind === "import-statement") follow(next);
  }
};
follow(script);

const icon = await readFile(join(here, "src", "icon.svg"));
const iconName = `icon-${createHash("sha256").update(icon).digest("hex").slice(0, 8)}.svg`;
await writeFile(join(made, "assets", iconName), icon);

const page = (await readFile(join(here, "src", "index.html"), "utf8"))
  .replace("STYLE", `/assets/${basename(style)}`)
  .replace("SCRIPT", `/assets/${basename(script)}`)
  .replace("ICON", `/assets/${iconName}`)
  .replace(
    "PRELOADS",
    [...first]
      .filter((path) => path !== script)
      .map((path) => `<link rel="modulepreload" href="/assets/${basename(path)}">`)
      .join("\n    "),
  );
await writeFile(join(made, "index.html"), page);

const sizes = new Map();
for (const folder of [made, join(made, "assets")]) {
  for (const item of await readdir(folder, { withFileTypes: true })) {
    if (!item.isFile()) continue;
    const packed = gzipSync(await readFile(join(folder, item.name)), { level: 9 });
    await writeFile(join(folder, `${item.name}.gz`), packed);
    sizes.set(item.name, packed.length);
  }
}

const counted = ["index.html", iconName, basename(style), ...[...first].map((path) => basename(path))];
const sum = counted.reduce((total, name) => total + sizes.get(name), 0);
console.log(`first paint: ${sum} of ${FIRST_PAINT} bytes, compressed (${counted.join(", ")})`);
if (sum > FIRST_PAINT) {
  console.error("make web: the first paint is larger than it may be; load what it does not need when it is asked for");
  await rm(made, { recursive: true });
  process.exit(1);
}

// The old bundle goes only when the new one is whole.
await rm(target, { recursive: true, force: true });
await rename(made, target);
