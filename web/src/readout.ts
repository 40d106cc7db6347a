/** How values and places are said under the crosshair. */

/** A value with no more digits than a reader can use. */
export function said(value: number, unit: string): string {
  if (!Number.isFinite(value)) return "no value";
  const size = Math.abs(value);
  const digits = unit === "HU" || size >= 100 ? 0 : size >= 10 ? 1 : 2;
  const number = value.toFixed(digits).replace(/^-(0(\.0+)?)$/, "$1");
  return unit === "1" ? number : `${number} ${unit}`;
}

/** The name of the label at a voxel. */
export const labelSaid = (value: number, classes: readonly string[]): string =>
  value <= 0 ? "none" : (classes[Math.round(value) - 1] ?? `label ${Math.round(value)}`);

/** A place in mm with the directions that radiologists use: the affine counts towards right, front and top. */
export function placeSaid(mm: readonly number[]): string {
  const ends = [["R", "L"], ["A", "P"], ["S", "I"]] as const;
  return ends.map(([plus, minus], i) => `${(mm[i]! < 0 ? minus : plus)} ${Math.abs(mm[i]!).toFixed(1)}`).join("  ") + " mm";
}

/** Level and width of a window from its ends, and back. */
export const windowOf = (low: number, high: number): { level: number; width: number } => ({
  level: (low + high) / 2, width: high - low,
});
export const endsOf = (level: number, width: number): [number, number] => [level - width / 2, level + width / 2];

/** How many voxels of a drawing differ from the labels it began with. */
export function changed(now: Uint8Array, before: Uint8Array): number {
  let count = 0;
  for (let i = 0; i < now.length; i++) if (now[i] !== before[i]) count++;
  return count;
}
