/** Colours of classes and maps: one table for the viewer, the legends and the pens. */

export type Rgb = readonly [number, number, number];

const NAMED: Readonly<Record<string, Rgb>> = {
  csf: [64, 156, 255], gm: [255, 176, 32], wm: [38, 198, 165],
  air: [64, 156, 255], "soft tissue": [38, 198, 165], bone: [255, 176, 32],
};
const OTHERS: readonly Rgb[] = [
  [64, 156, 255], [255, 176, 32], [38, 198, 165], [196, 128, 255],
  [255, 110, 90], [160, 210, 60], [90, 215, 235], [230, 150, 190],
];
const TITLES: Readonly<Record<string, string>> = { csf: "CSF", gm: "Grey matter", wm: "White matter" };

export const DOUBT: Rgb = [255, 64, 129];
export const MOST_DOUBT: Rgb = [255, 226, 120];

/** Share of a map's scale from which on it hides the image below. */
export const FULL_FROM = 0.6;

export const classColour = (name: string, index: number): Rgb => NAMED[name] ?? OTHERS[index % OTHERS.length]!;

export const classTitle = (name: string): string => TITLES[name] ?? name.charAt(0).toUpperCase() + name.slice(1);

export const css = ([r, g, b]: Rgb): string => `rgb(${Math.round(r)} ${Math.round(g)} ${Math.round(b)})`;

/** A colour map of the viewer: red, green, blue and alpha at the places `I` in 0 to 255. */
export interface ColourMap {
  R: number[];
  G: number[];
  B: number[];
  A: number[];
  I: number[];
  labels?: string[];
  min?: number;
  max?: number;
}

/** From one colour, up to where a map hides the image, to another. How it fades below is the viewer's to draw. */
export const ramp = (low: Rgb, high: Rgb): ColourMap => {
  const at = [low, low, high] as const;
  return {
    R: at.map((c) => c[0]), G: at.map((c) => c[1]), B: at.map((c) => c[2]),
    A: [0, 255, 255], I: [0, Math.round(255 * FULL_FROM), 255],
  };
};

/** What a map looks like over black at a share of its scale: the same as the viewer draws. */
export function shade(share: number, low: Rgb, high: Rgb): Rgb {
  const seen = Math.min((share / FULL_FROM) ** 2, 1);
  const mixed = Math.max(share - FULL_FROM, 0) / (1 - FULL_FROM);
  const one = (i: 0 | 1 | 2): number => seen * (low[i] + mixed * (high[i] - low[i]));
  return [one(0), one(1), one(2)];
}

/** One colour for each class; label 0 is clear. */
export function labelMap(classes: readonly string[]): ColourMap {
  const colours = classes.map(classColour);
  return {
    R: [0, ...colours.map((c) => c[0])],
    G: [0, ...colours.map((c) => c[1])],
    B: [0, ...colours.map((c) => c[2])],
    A: [0, ...colours.map(() => 255)],
    I: [0, ...classes.map((_, i) => i + 1)],
    labels: ["none", ...classes],
  };
}
