/** The viewer: slices and a 3-D view of one image, with classes, probabilities and doubt over it. */

import { NVImage, Niivue, SHOW_RENDER, SLICE_TYPE } from "@niivue/niivue";
import { type Part, type VolumeInfo, volumeUrl } from "./api";
import { type Rgb, DOUBT, FULL_FROM, MOST_DOUBT, classColour, classTitle, css, labelMap, ramp, shade } from "./colour";
import { endsOf, labelSaid, placeSaid, said, windowOf } from "./readout";
import { make, one } from "./say";

const TITLES: Readonly<Record<string, string>> = {
  t1: "T1 image", ct: "CT slice", tissue: "Brain tissue", "ct-classes": "CT tissue classes",
  "ct-scanned": "CT slice as scanned in simulation", "ct-fbp": "Simulated low-dose CT, FBP",
  "ct-low-dose": "Simulated low-dose CT", "ct-low-dose-classes": "Classes on the simulated low-dose CT",
};
const VIEWS = [SLICE_TYPE.MULTIPLANAR, SLICE_TYPE.AXIAL, SLICE_TYPE.CORONAL, SLICE_TYPE.SAGITTAL, SLICE_TYPE.RENDER];
const FADES = 1; // COLORMAP_TYPE of the viewer, which it does not export
const HU_WINDOW: readonly [number, number] = [-160, 240];

export const roleTitle = (role: string): string => TITLES[role] ?? role;

/** A part of a volume that can be shown. */
export interface Layer {
  key: string;
  volume: VolumeInfo;
  part: Part;
}

const layersOf = (volume: VolumeInfo): Layer[] =>
  volume.parts.map((part) => ({ key: `${volume.role}.${part.name}`, volume, part }));

const sameGrid = (a: VolumeInfo, b: VolumeInfo): boolean => a.shape.every((n, axis) => n === b.shape[axis]);

export class Viewer {
  readonly nv: Niivue;
  base!: VolumeInfo;
  overlay: Layer | null = null;
  doubtShown = false;
  /** Called after what is shown has changed. */
  changed: () => void = () => undefined;
  /** How opaque what lies over the image is: classes and probabilities, or doubt in their place. */
  private readonly share = { overlay: 0.45, doubt: 0.9 };
  private view = 0;
  private readonly held = new Map<string, Promise<NVImage>>();
  private drawn: Layer[] = [];
  private turn = 0;

  constructor(
    private readonly caseId: string,
    public volumes: VolumeInfo[],
    private readonly canvas: HTMLCanvasElement,
  ) {
    this.nv = new Niivue({
      logLevel: "error", dragAndDropEnabled: false, isRadiologicalConvention: true, backColor: [0, 0, 0, 1],
      crosshairColor: [0.49, 0.76, 0.92, 0.75], crosshairWidth: 0.9, crosshairWidthUnit: "mm", crosshairGap: 8, fontColor: [0.72, 0.78, 0.82, 1],
      fontMinPx: 12, multiplanarShowRender: SHOW_RENDER.ALWAYS, multiplanarLayout: 2, loadingText: "", isAntiAlias: false,
      sagittalNoseLeft: true, isNearestInterpolation: false, maxDrawUndoBitmaps: 24, isForceMouseClickToVoxelCenters: true,
    });
  }

  async open(): Promise<void> {
    await this.nv.attachToCanvas(this.canvas, false);
    this.nv.onLocationChange = () => this.readOut();
    this.nv.onIntensityChange = () => this.sayWindow();
  }

  /** Images that can lie below: those that are not classes; classes themselves where there is nothing else. */
  bases(): VolumeInfo[] {
    const plain = this.volumes.filter((volume) => volume.classes.length === 0);
    return plain.length ? plain : this.volumes;
  }

  /** What can lie over the base image: parts on the same grid. */
  overlays(): Layer[] {
    return this.volumes
      .filter((volume) => sameGrid(volume, this.base))
      .flatMap(layersOf)
      .filter((layer) => layer.part.kind !== "image" && layer.part.name !== "doubt");
  }

  labels(): Layer | null {
    return this.overlays().find((layer) => layer.part.kind === "labels") ?? null;
  }

  doubt(): Layer | null {
    const role = this.overlay?.volume.role;
    const found = this.volumes
      .filter((volume) => sameGrid(volume, this.base))
      .flatMap(layersOf)
      .filter((layer) => layer.part.name === "doubt");
    return found.find((layer) => layer.volume.role === role) ?? found[0] ?? null;
  }

  async showBase(role: string): Promise<void> {
    this.base = this.bases().find((volume) => volume.role === role) ?? this.bases()[0]!;
    this.overlay = this.labels();
    const layer = layersOf(this.base)[0]!;
    const image = await this.image(layer);
    this.put([image], [layer]);
    this.nv.updateGLVolume();
    const flat = this.base.shape.findIndex((n) => n === 1);
    this.setView(flat < 0 ? this.view : 1);
    this.nv.gl.finish();
    if (!performance.getEntriesByName("first-picture").length) performance.mark("first-picture");
    this.readOut();
    await this.refresh();
  }

  async showOverlay(key: string): Promise<void> {
    this.overlay = this.overlays().find((layer) => layer.key === key) ?? null;
    await this.refresh();
  }

  async showDoubt(shown: boolean): Promise<void> {
    this.doubtShown = shown && this.doubt() !== null;
    await this.refresh();
  }

  /** Show the classes that a finding speaks of, on the image that they belong to. */
  async showRole(role: string, className: string): Promise<void> {
    const volume = this.volumes.find((one) => one.role === role);
    if (!volume) return;
    if (!sameGrid(volume, this.base) || (volume.classes.length === 0 && volume !== this.base)) {
      const below = this.bases().find((one) => sameGrid(one, volume));
      if (!below) return;
      await this.showBase(below.role);
    }
    const wanted = this.overlays().filter((layer) => layer.volume.role === role);
    const map = wanted.find((layer) => layer.part.name === `probability-${className}`);
    const labels = wanted.find((layer) => layer.part.kind === "labels");
    if (map ?? labels) await this.showOverlay((map ?? labels)!.key);
  }

  get opacity(): number {
    return this.share[this.doubtShown ? "doubt" : "overlay"];
  }

  setOpacity(share: number): void {
    this.share[this.doubtShown ? "doubt" : "overlay"] = share;
    this.drawn.forEach((layer, index) => {
      if (index > 0) this.nv.setOpacity(index, this.opacityOf(layer));
    });
    this.nv.setDrawOpacity(Math.max(this.share.overlay, 0.25));
  }

  setView(index: number): void {
    this.view = index;
    this.nv.setSliceType(VIEWS[index] ?? SLICE_TYPE.MULTIPLANAR);
    document.querySelectorAll<HTMLElement>("[data-view]").forEach((button) => {
      button.setAttribute("aria-pressed", String(Number(button.dataset["view"]) === index + 1));
    });
  }

  /** Move the crosshair by voxels to the right of the patient, to the front and to the top. */
  move(x: number, y: number, z: number): void {
    this.nv.moveCrosshairInVox(x, y, z);
  }

  /** Step through the slices of the plane that is shown; axial ones when all are. */
  step(count: number): void {
    const type = VIEWS[this.view];
    if (type === SLICE_TYPE.CORONAL) this.move(0, count, 0);
    else if (type === SLICE_TYPE.SAGITTAL) this.move(count, 0, 0);
    else this.move(0, 0, count);
  }

  window(level: number, width: number): void {
    const image = this.nv.volumes[0];
    if (!image || !(width > 0)) return;
    [image.cal_min, image.cal_max] = endsOf(level, width);
    this.nv.updateGLVolume();
    this.sayWindow();
  }

  resetWindow(): void {
    const image = this.nv.volumes[0];
    if (!image) return;
    [image.cal_min, image.cal_max] = this.usualWindow(image);
    this.nv.updateGLVolume();
    this.sayWindow();
  }

  /** Load the volumes of the case anew, after a correction. */
  async take(volumes: VolumeInfo[]): Promise<void> {
    const key = this.overlay?.key;
    const role = this.base.role;
    this.volumes = volumes;
    this.base = this.bases().find((volume) => volume.role === role) ?? this.bases()[0]!;
    this.overlay = this.overlays().find((layer) => layer.key === key) ?? null;
    await this.refresh();
  }

  async image(layer: Layer): Promise<NVImage> {
    const url = volumeUrl(this.caseId, layer.volume, layer.part.name);
    let held = this.held.get(url);
    if (!held) {
      held = NVImage.loadFromUrl({ url, name: `${layer.key}.nii.gz` });
      this.held.set(url, held);
      held.catch(() => this.held.delete(url));
    }
    const image = await held;
    this.dress(image, layer);
    return image;
  }

  /** Show the base, the overlay and the doubt that are wanted now; the last call wins. */
  async refresh(): Promise<void> {
    const turn = ++this.turn;
    const doubt = this.doubtShown ? this.doubt() : null;
    const wanted = [layersOf(this.base)[0]!, ...(this.overlay ? [this.overlay] : []), ...(doubt ? [doubt] : [])];
    const images = await Promise.all(wanted.map((layer) => this.image(layer)));
    if (turn !== this.turn) return;
    images.slice(1).forEach((image, index) => (image.opacity = this.opacityOf(wanted[index + 1]!)));
    this.put(images, wanted);
    this.nv.updateGLVolume();
    this.sayWindow();
    this.sayLegends();
    this.readOut();
    this.changed();
  }

  private put(images: NVImage[], layers: Layer[]): void {
    this.nv.volumes = images;
    this.nv.back = images[0]!;
    this.nv.overlays = images.slice(1);
    this.drawn = layers;
  }

  /** Doubt stands in the place of the overlay, whose values are still read out. */
  private opacityOf({ part }: Layer): number {
    if (part.name === "doubt") return this.share.doubt;
    return this.doubtShown ? 0 : this.share.overlay;
  }

  private dress(image: NVImage, { part, volume }: Layer): void {
    if (part.kind === "labels") {
      image.setColormapLabel({ ...labelMap(volume.classes) } as never);
    } else if (part.kind === "map") {
      const isDoubt = part.name === "doubt";
      const name = isDoubt ? "sagittal-doubt" : `sagittal-${part.name}`;
      this.nv.addColormap(name, ramp(...this.coloursOf(part, volume)) as never);
      image.colormap = name;
      image.cal_max = this.topOf(part, volume, image);
      // Below cal_min the viewer fades a voxel by the square of its share of cal_min: the less, the clearer.
      image.cal_min = FULL_FROM * image.cal_max;
      image.colormapType = FADES;
    } else if (image.cal_min === image.robust_min && image.cal_max === image.robust_max) {
      [image.cal_min, image.cal_max] = this.usualWindow(image, volume);
    }
  }

  private coloursOf(part: Part, volume: VolumeInfo): [Rgb, Rgb] {
    if (part.name === "doubt") return [DOUBT, MOST_DOUBT];
    const name = part.name.slice("probability-".length);
    const colour = classColour(name, Math.max(volume.classes.indexOf(name), 0));
    return [colour, colour];
  }

  /** The highest value of a map's scale: 1 for a probability, all classes alike for entropy. */
  private topOf(part: Part, volume: VolumeInfo, image: NVImage): number {
    if (part.name !== "doubt") return 1;
    return volume.classes.length ? Math.log2(volume.classes.length + 1) : (image.robust_max ?? image.global_max ?? 1);
  }

  private usualWindow(image: NVImage, volume: VolumeInfo = this.base): [number, number] {
    if (volume.unit === "HU") return [...HU_WINDOW];
    return [image.robust_min ?? 0, image.robust_max ?? 1];
  }

  private sayWindow(): void {
    const image = this.nv.volumes[0];
    if (!image) return;
    const { level, width } = windowOf(image.cal_min ?? 0, image.cal_max ?? 1);
    const digits = width > 50 ? 0 : 2;
    one<HTMLInputElement>("[data-level]").value = level.toFixed(digits);
    one<HTMLInputElement>("[data-width]").value = width.toFixed(digits);
  }

  private readOut(): void {
    const entries: (readonly [string, string])[] = [];
    if (!this.nv.volumes.length) return;
    const mm = this.nv.frac2mm(this.nv.scene.crosshairPos, 0, true);
    this.nv.volumes.forEach((image, index) => {
      const { part, volume } = this.drawn[index]!;
      const voxel = image.mm2vox(Array.from(mm)) as ArrayLike<number>;
      if (index === 0) {
        entries.push(["Place", placeSaid(Array.from(mm))]);
        entries.push(["Voxel", Array.from(voxel).slice(0, 3).map((n) => Math.round(n)).join(", ")]);
      }
      const value = image.getValue(voxel[0]!, voxel[1]!, voxel[2]!, 0);
      const text = part.kind === "labels" ? labelSaid(value, volume.classes) : said(value, part.unit);
      entries.push([this.nameOf(this.drawn[index]!), text]);
    });
    one("[data-readout]").replaceChildren(
      ...entries.map(([name, value]) => make("span", {}, make("span", { class: "soft" }, `${name} `), make("b", {}, value))),
    );
  }

  nameOf({ part, volume }: Layer): string {
    if (part.kind === "image") return roleTitle(volume.role);
    if (part.kind === "labels") return `${roleTitle(volume.role)}, classes`;
    if (part.name === "doubt") return volume.classes.length ? "Doubt (entropy)" : "Doubt (standard deviation)";
    return `Probability of ${classTitle(part.name.slice("probability-".length))}`;
  }

  private sayLegends(): void {
    const entries = this.drawn.flatMap((layer, index) => {
      const { part, volume } = layer;
      if (index === 0 || this.opacityOf(layer) === 0) return [];
      if (part.kind === "labels") {
        return volume.classes.map((name, i) => entry(swatch(classColour(name, i)), classTitle(name)));
      }
      const top = said(this.nv.volumes[index]?.cal_max ?? 1, part.unit);
      return [entry(`${this.nameOf(layer)}: 0`, bar(...this.coloursOf(part, volume)), top)];
    });
    one("[data-legends]").replaceChildren(...(entries.length ? entries : ["No overlay is shown."]));
  }
}

const entry = (...children: (Node | string)[]): HTMLElement => make("span", { class: "entry" }, ...children);

export function swatch(colour: Rgb): HTMLElement {
  const box = make("span", { class: "swatch" });
  box.style.backgroundColor = css(colour);
  return box;
}

function bar(low: Rgb, high: Rgb): HTMLElement {
  const box = make("span", { class: "ramp" });
  const stops = [0, 0.15, 0.3, 0.45, 0.6, 0.8, 1].map((share) => `${css(shade(share, low, high))} ${100 * share}%`);
  box.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  return box;
}
