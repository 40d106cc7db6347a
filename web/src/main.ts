/** What scripts add to a page that works without them: the viewer, painting, and the keyboard. */

import { volumes } from "./api";
import { Findings } from "./findings";
import { type Key, list, listen } from "./keys";
import { Painting } from "./paint";
import { make, one, say } from "./say";
import { Viewer, roleTitle } from "./viewer";

function theme(): void {
  const choice = document.querySelector<HTMLSelectElement>("[data-theme-choice]");
  choice?.addEventListener("change", () => {
    document.documentElement.dataset["theme"] = choice.value;
    document.cookie = `sagittal_theme=${choice.value}; path=/; max-age=31536000; samesite=strict`;
  });
}

function dialogs(table: Key[]): void {
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog")?.close());
  }
  const keys = document.querySelector<HTMLDialogElement>("#keys");
  const button = document.querySelector<HTMLElement>("[data-do=keys]");
  if (!keys || !button) return;
  list(table, one("[data-keys]", keys));
  button.classList.remove("hidden");
  button.addEventListener("click", () => keys.showModal());
}

const showKeys: Key = { keys: ["?"], does: "This list", run: () => document.querySelector<HTMLDialogElement>("#keys")?.showModal() };

function worklist(): void {
  const step = (by: number): void => {
    const links = [...document.querySelectorAll<HTMLElement>("[data-row]")];
    const at = links.indexOf(document.activeElement as HTMLElement);
    links[Math.min(Math.max(at + by, 0), links.length - 1)]?.focus();
  };
  const table: Key[] = [
    { keys: ["j"], does: "Next case", run: () => step(1) },
    { keys: ["k"], does: "The case before", run: () => step(-1) },
    { keys: ["/"], does: "Search", run: () => document.querySelector<HTMLInputElement>("[data-search]")?.focus() },
    showKeys,
  ];
  listen(table);
  dialogs(table);
}

function stillsInstead(why: string): void {
  const place = document.querySelector<HTMLElement>("[data-stills-why]");
  if (!place) return;
  place.textContent = `${why} Still pictures are shown instead, without crosshair and painting.`;
  place.classList.remove("hidden");
}

async function openViewer(caseId: string): Promise<Viewer | null> {
  const place = document.querySelector<HTMLElement>("[data-viewer]");
  if (!place) return null;
  if (!document.createElement("canvas").getContext("webgl2")) {
    stillsInstead("This browser has no WebGL2, which the viewer draws with.");
    return null;
  }
  const stills = one("[data-stills]");
  place.classList.remove("hidden");
  stills.classList.add("hidden");
  try {
    const viewer = new Viewer(caseId, await volumes(caseId), one<HTMLCanvasElement>("[data-canvas]"));
    await viewer.open();
    return viewer;
  } catch (error) {
    place.classList.add("hidden");
    stills.classList.remove("hidden");
    stillsInstead(`The viewer could not start: ${error instanceof Error ? error.message : String(error)}.`);
    return null;
  }
}

function controls(viewer: Viewer, attempt: (work: Promise<void>) => void): () => void {
  const base = one<HTMLSelectElement>("[data-base]");
  const overlay = one<HTMLSelectElement>("[data-overlay]");
  const opacity = one<HTMLInputElement>("[data-opacity]");
  const level = one<HTMLInputElement>("[data-level]");
  const width = one<HTMLInputElement>("[data-width]");
  base.replaceChildren(...viewer.bases().map(({ role }) => make("option", { value: role }, roleTitle(role))));
  viewer.changed = () => {
    base.value = viewer.base.role;
    overlay.replaceChildren(
      make("option", { value: "" }, "None"),
      ...viewer.overlays().map((layer) => make("option", { value: layer.key }, viewer.nameOf(layer))),
    );
    overlay.value = viewer.overlay?.key ?? "";
    const doubt = one<HTMLButtonElement>("[data-do=doubt]");
    doubt.disabled = viewer.doubt() === null;
    doubt.setAttribute("aria-pressed", String(viewer.doubtShown));
    opacity.value = String(Math.round(100 * viewer.opacity));
    one("[data-opacity-said]").textContent = `${opacity.value} %`;
    one<HTMLButtonElement>("[data-do=paint]").disabled = !viewer.labels()?.volume.correctable;
  };
  base.addEventListener("change", () => attempt(viewer.showBase(base.value)));
  overlay.addEventListener("change", () => attempt(viewer.showOverlay(overlay.value)));
  const fade = (): void => {
    viewer.setOpacity(Number(opacity.value) / 100);
    one("[data-opacity-said]").textContent = `${opacity.value} %`;
  };
  opacity.addEventListener("input", fade);
  for (const input of [level, width]) {
    input.addEventListener("change", () => viewer.window(Number(level.value), Number(width.value)));
  }
  return fade;
}

async function casePage(caseId: string): Promise<void> {
  let viewer: Viewer | null = null;
  let painting: Painting | null = null;
  const attempt = (work: Promise<void>): void => {
    work.catch((error: unknown) => say(`The image could not be loaded: ${error instanceof Error ? error.message : String(error)}`));
  };
  const findings = new Findings((role, className) => {
    if (viewer && !painting?.on) attempt(viewer.showRole(role, className));
  });
  let fade = (): void => undefined;
  const fadeBy = (by: number): void => {
    const opacity = one<HTMLInputElement>("[data-opacity]");
    const next = Number(opacity.value) + by;
    opacity.value = String(next > 100 ? 0 : next < 0 ? 100 : next);
    fade();
  };
  const doubt = (): void => {
    if (viewer) attempt(viewer.showDoubt(!viewer.doubtShown));
  };
  const actions: Record<string, (target: HTMLElement) => void> = {
    doubt,
    window: () => viewer?.resetWindow(),
    paint: () => painting && attempt(painting.toggle()),
    pen: (target) => painting?.takePen(Number(target.dataset["pen"])),
    undo: () => painting?.undo(),
    save: () => painting?.ask(),
    "leave-paint": () => painting?.leave(),
    discard: () => {
      one<HTMLDialogElement>("#leave").close();
      if (painting) attempt(painting.end());
    },
    download: () => painting && attempt(painting.download()),
    newer: () => painting && attempt(painting.newer()),
  };
  document.addEventListener("click", (event) => {
    const target = (event.target as Element).closest<HTMLElement>("[data-do], [data-view]");
    if (!target) return;
    if (target.dataset["view"]) viewer?.setView(Number(target.dataset["view"]) - 1);
    else actions[target.dataset["do"] ?? ""]?.(target);
  });
  const table: Key[] = [
    { keys: ["j"], does: "Next finding", run: () => findings.step(1) },
    { keys: ["k"], does: "The finding before", run: () => findings.step(-1) },
    { keys: ["a"], does: "Go to Accept; Enter says it", run: () => findings.reach("[data-accept]") },
    { keys: ["r"], does: "Go to Reject; Enter says it", run: () => findings.reach("[data-reject]") },
    { keys: ["e"], does: "Correct the statement", run: () => findings.reach("textarea") },
    { keys: ["d"], does: "Show or hide doubt", run: doubt },
    { keys: ["o", "O"], does: "More or less opaque overlay", run: (event) => fadeBy(event.key === "o" ? 15 : -15) },
    { keys: ["1", "2", "3", "4", "5"], does: "All views, axial, coronal, sagittal, 3-D", run: (event) => viewer?.setView(Number(event.key) - 1) },
    { keys: ["i"], does: "Go to the image", run: () => document.querySelector<HTMLElement>("[data-canvas]")?.focus() },
    { keys: ["PageUp", "PageDown"], named: "PgUp PgDn", does: "On the image: next slice, slice before; ten with Shift", run: (event) => viewer?.step((event.key === "PageUp" ? 1 : -1) * (event.shiftKey ? 10 : 1)) },
    {
      keys: ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"], named: "← → ↑ ↓", does: "On the image: move the crosshair to the patient’s right, left, front, back",
      run: (event) => {
        const by = event.shiftKey ? 10 : 1;
        viewer?.move(event.key === "ArrowLeft" ? by : event.key === "ArrowRight" ? -by : 0, event.key === "ArrowUp" ? by : event.key === "ArrowDown" ? -by : 0, 0);
      },
    },
    { keys: ["p"], does: "Paint a correction, or leave painting", run: () => actions["paint"]?.(document.body) },
    { keys: ["z"], does: "Painting: undo", run: () => painting?.undo() },
    { keys: ["s"], does: "Painting: save", run: () => painting?.ask() },
    showKeys,
  ];
  listen(table);
  document.querySelector("[data-dialogs]")?.classList.remove("hidden");
  dialogs(table);
  viewer = await openViewer(caseId);
  if (!viewer) return;
  fade = controls(viewer, attempt);
  painting = new Painting(caseId, viewer, async (numbers) => {
    await findings.reload();
    if (numbers.length) say(`Saved. ${numbers.length === 1 ? "Finding" : "Findings"} ${numbers.join(", ")} ${numbers.length === 1 ? "is" : "are"} new and undecided.`);
  });
  try {
    await viewer.showBase(viewer.bases()[0]?.role ?? "");
  } catch (error) {
    attempt(Promise.reject(error));
  }
  one("[data-wait]").classList.add("hidden");
}

theme();
if (document.body.dataset["page"] === "case") void casePage(document.body.dataset["case"] ?? "");
else if (document.body.dataset["page"] === "worklist") worklist();
