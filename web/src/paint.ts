/** Painting a correction on the mask: from the labels, class by class, to a new version that supersedes. */

import { type VolumeInfo, Refused, correct, sign, volumes } from "./api";
import { classColour, classTitle, labelMap } from "./colour";
import { changed } from "./readout";
import { make, one, say } from "./say";
import { type Layer, type Viewer, swatch } from "./viewer";

export class Painting {
  private layer: Layer | null = null;
  private before: Uint8Array | null = null;
  private pen = 1;
  private dirty = 0;
  private shown = "";

  constructor(
    private readonly caseId: string,
    private readonly viewer: Viewer,
    /** Called when the record has changed; gets the numbers of the new findings. */
    private readonly saved: (findings: number[]) => Promise<void>,
  ) {
    window.addEventListener("beforeunload", (event) => {
      if (this.dirty) event.preventDefault();
    });
    this.viewer.nv.onDrawingChanged = () => this.count();
    one("[data-pen-size]").addEventListener("input", () => this.sayPen());
    one("[data-pen-fill]").addEventListener("change", () => this.takePen(this.pen));
    one<HTMLFormElement>("[data-save-form]").addEventListener("submit", (event) => {
      event.preventDefault();
      void this.send(event.currentTarget as HTMLFormElement);
    });
  }

  get on(): boolean {
    return this.layer !== null;
  }

  async toggle(): Promise<void> {
    if (this.on) this.leave();
    else await this.begin();
  }

  undo(): void {
    if (this.on) this.viewer.nv.drawUndo();
  }

  /** Leave, or ask when something painted would be lost. */
  leave(): void {
    if (this.dirty) one<HTMLDialogElement>("#leave").showModal();
    else void this.end();
  }

  async end(): Promise<void> {
    this.viewer.nv.setDrawingEnabled(false);
    this.viewer.nv.closeDrawing();
    this.layer = this.before = null;
    this.dirty = 0;
    this.bar(false);
    await this.viewer.showOverlay(this.shown);
  }

  ask(): void {
    if (!this.on) return;
    if (!this.dirty) {
      say("Nothing was painted yet.");
      return;
    }
    one("[data-save-said]").textContent =
      `${this.dirty.toLocaleString("en")} voxels differ. The mask as it is stays in the record; this one takes its place, and what is measured on it is measured again.`;
    one<HTMLDialogElement>("#save").showModal();
  }

  async download(): Promise<void> {
    const url = URL.createObjectURL(await this.mask());
    const link = make("a", { href: url, download: `${this.caseId}-${this.layer!.volume.role}-drawing.nii.gz` });
    link.click();
    window.setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  /** Give the drawing up and start again from the mask that somebody else has saved. */
  async newer(): Promise<void> {
    one<HTMLDialogElement>("#faster").close();
    await this.end();
    await this.saved([]);
    await this.viewer.take(await volumes(this.caseId));
    await this.begin();
  }

  takePen(value: number): void {
    this.pen = value;
    this.viewer.nv.setPenValue(value, one<HTMLInputElement>("[data-pen-fill]").checked && value > 0);
    document.querySelectorAll<HTMLElement>("[data-pen]").forEach((button) => {
      button.setAttribute("aria-pressed", String(Number(button.dataset["pen"]) === value));
    });
  }

  private async begin(): Promise<void> {
    const layer = this.viewer.labels();
    if (!layer || !layer.volume.correctable) {
      say("There is no mask on this image that can be corrected.");
      return;
    }
    const { nv } = this.viewer;
    this.shown = this.viewer.overlay?.key ?? "";
    await this.viewer.showOverlay("");
    const labels = await this.viewer.image(layer);
    if (!nv.loadDrawing(labels)) {
      say("The mask does not lie on the grid of this image, so it cannot be painted here.");
      await this.viewer.showOverlay(this.shown);
      return;
    }
    nv.setDrawColormap({ ...labelMap(layer.volume.classes) } as never);
    this.layer = layer;
    this.before = nv.drawBitmap!.slice();
    this.dirty = 0;
    this.bar(true);
    this.pens(layer.volume);
    nv.setDrawingEnabled(true);
    this.viewer.setOpacity(this.viewer.opacity);
    this.takePen(Math.min(2, layer.volume.classes.length));
    this.sayPen();
    this.count();
    one("[data-legends]").textContent = "Drag to paint with the chosen class; turn the wheel for slices; the slider says how much of the image shines through.";
  }

  private pens(volume: VolumeInfo): void {
    const buttons = volume.classes.map((name, i) =>
      make("button", { type: "button", "data-pen": String(i + 1), "aria-pressed": "false", "data-do": "pen" }, swatch(classColour(name, i)), classTitle(name)),
    );
    const eraser = make("button", { type: "button", "data-pen": "0", "aria-pressed": "false", "data-do": "pen" }, "Eraser");
    one("[data-pens]").replaceChildren(...buttons, eraser);
  }

  private sayPen(): void {
    const size = Number(one<HTMLInputElement>("[data-pen-size]").value);
    this.viewer.nv.opts.penSize = size;
    one("[data-pen-said]").textContent = size === 1 ? "1 voxel" : `${size} voxels`;
  }

  private count(): void {
    const now = this.viewer.nv.drawBitmap;
    if (!now || !this.before) return;
    this.dirty = changed(now, this.before);
    const { spacing } = this.layer!.volume;
    const ml = (this.dirty * spacing[0] * spacing[1] * spacing[2]) / 1000;
    one("[data-painted]").textContent = this.dirty
      ? `${this.dirty.toLocaleString("en")} voxels changed (${ml.toFixed(ml < 10 ? 2 : 0)} ml), not saved`
      : "nothing changed yet";
  }

  private bar(shown: boolean): void {
    one("[data-painting]").classList.toggle("hidden", !shown);
    one("[data-do=paint]").setAttribute("aria-pressed", String(shown));
    for (const select of document.querySelectorAll<HTMLSelectElement>("[data-base], [data-overlay]")) select.disabled = shown;
  }

  private async mask(): Promise<Blob> {
    const labels = await this.viewer.image(this.layer!);
    const bytes = (await labels.saveToDisk("", this.viewer.nv.drawBitmap!)) as Uint8Array<ArrayBuffer>;
    return new Response(new Blob([bytes]).stream().pipeThrough(new CompressionStream("gzip"))).blob();
  }

  private async send(form: HTMLFormElement): Promise<void> {
    const given = new FormData(form);
    const button = one<HTMLButtonElement>("button.main", form);
    button.disabled = true;
    const { role, content } = this.layer!.volume;
    try {
      const mask = await this.mask();
      if (!document.body.dataset["user"]) await sign(String(given.get("name") ?? ""));
      const done = await correct(this.caseId, role, content, mask, String(given.get("note") ?? ""));
      one<HTMLDialogElement>("#save").close();
      await this.end();
      await this.viewer.take(await volumes(this.caseId));
      await this.viewer.showOverlay(`${role}.image`);
      await this.saved(done.findings);
    } catch (error) {
      one<HTMLDialogElement>("#save").close();
      if (error instanceof Refused && error.status === 409) this.tellFaster(error);
      else say(`Not saved: ${error instanceof Error ? error.message : String(error)}. Your drawing is still here.`);
    } finally {
      button.disabled = false;
    }
  }

  private tellFaster(error: Refused): void {
    const how = typeof error.problem.value === "string" ? ` (${error.problem.value})` : "";
    one("[data-faster-said]").textContent = `${error.message.charAt(0).toUpperCase()}${error.message.slice(1)}${how}.`;
    one<HTMLDialogElement>("#faster").showModal();
  }
}
