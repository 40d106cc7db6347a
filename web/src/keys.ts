/** Keys: one table for what they do and for the list of them. */

import { make } from "./say";

export interface Key {
  /** What `KeyboardEvent.key` says; several do the same. */
  keys: string[];
  /** What they do, as the list says it. */
  does: string;
  run: (event: KeyboardEvent) => void;
  /** How the list names them, where their own names would not do. */
  named?: string;
}

const writing = (target: EventTarget | null): boolean =>
  target instanceof HTMLElement &&
  (target.isContentEditable ||
    target instanceof HTMLTextAreaElement ||
    target instanceof HTMLSelectElement ||
    (target instanceof HTMLInputElement && !["checkbox", "button", "submit"].includes(target.type)));

/** Listen before the viewer does, so that its own keys are never in the way. */
export function listen(table: Key[]): void {
  window.addEventListener(
    "keydown",
    (event) => {
      if (event.target instanceof HTMLCanvasElement) event.stopImmediatePropagation();
      if (event.ctrlKey || event.metaKey || event.altKey || writing(event.target) || document.querySelector("dialog[open]")) return;
      const arrows = event.key.startsWith("Arrow") || event.key.startsWith("Page");
      if (arrows && !(event.target instanceof HTMLCanvasElement)) return;
      const found = table.find(({ keys }) => keys.includes(event.key));
      if (!found) return;
      event.preventDefault();
      found.run(event);
    },
    { capture: true },
  );
  window.addEventListener(
    "keyup",
    (event) => {
      if (event.target instanceof HTMLCanvasElement) event.stopImmediatePropagation();
    },
    { capture: true },
  );
}

export function list(table: Key[], into: HTMLElement): void {
  into.replaceChildren(
    ...table.flatMap(({ keys, does, named }) => [
      make("dt", {}, ...(named ?? keys.join(" ")).split(" ").flatMap((key) => [make("kbd", {}, key), " "])),
      make("dd", {}, does),
    ]),
  );
}
