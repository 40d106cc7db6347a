/** Short lines to the reader: shown for a moment, and read out. */

let timer = 0;

export function say(text: string): void {
  const told = document.querySelector<HTMLElement>("[data-told]");
  if (!told) return;
  told.textContent = text;
  window.clearTimeout(timer);
  timer = window.setTimeout(() => (told.textContent = ""), Math.max(4000, 70 * text.length));
}

/** The one element that a selector names within a page that has it. */
export function one<T extends Element = HTMLElement>(selector: string, within: ParentNode = document): T {
  const found = within.querySelector<T>(selector);
  if (!found) throw new Error(`the page has no ${selector}`);
  return found;
}

/** An element with text, and attributes. */
export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Record<string, string> = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
