/** What stands in for libraries that the viewer imports and that no page here uses. */
const absent = (): never => {
  throw new Error("this format is not read here");
};

export const open = absent;
export const root = absent;
export const get = absent;
export const slice = absent;
export const registry = new Map<string, unknown>();
export class FetchStore {
  constructor() {
    absent();
  }
}
