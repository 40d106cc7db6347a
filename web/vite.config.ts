import { existsSync, readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { type Plugin, defineConfig } from "vite";

// The viewer reads NIfTI alone. The reader of Zarr with its WebAssembly codecs is left out; absent.ts is in its place.
const absent = new URL("./src/absent.ts", import.meta.url).pathname;

/** Put the licences of what was bundled beside it, as they ask for. */
const licences = (): Plugin => ({
  name: "licences",
  generateBundle(_options, bundle) {
    const folders = new Set<string>();
    for (const chunk of Object.values(bundle)) {
      for (const id of chunk.type === "chunk" ? chunk.moduleIds : []) {
        const found = /^.*\/node_modules\/(?:@[^/]+\/)?[^/]+/.exec(id)?.[0];
        if (found && existsSync(join(found, "package.json"))) folders.add(found);
      }
    }
    const texts = [...folders].sort().map((folder) => {
      const { name, version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
      const file = readdirSync(folder).find((one) => /^licen[cs]e/i.test(one));
      const kept = join("licences", `${String(name).split("/").at(-1)}.txt`); // of a package that comes without its own
      const text = file ? join(folder, file) : kept;
      return `${name} ${version} (${license})\n\n${readFileSync(text, "utf8")}`;
    });
    this.emitFile({ type: "asset", fileName: "licences.txt", source: texts.join("\n\n----\n\n") });
  },
});

export default defineConfig({
  base: "/static/",
  publicDir: false,
  plugins: [licences()],
  resolve: { alias: { zarrita: absent } },
  build: {
    outDir: "../src/sagittal/workbench/static",
    emptyOutDir: true,
    manifest: "manifest.json",
    target: "es2022",
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 2000,
    rolldownOptions: { input: "src/main.ts" },
  },
});
