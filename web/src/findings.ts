/** Findings: which one is read now, where it came from, and forms that do not load the page again. */

import { say } from "./say";

const rows = (): HTMLDetailsElement[] => [...document.querySelectorAll<HTMLDetailsElement>("details.finding")];

export class Findings {
  private here = 0;

  constructor(
    private readonly shown: (role: string, className: string) => void,
  ) {
    document.addEventListener("submit", (event) => {
      const form = event.target as HTMLFormElement;
      if (!form.hasAttribute("data-form")) return;
      event.preventDefault();
      void this.post(form, event.submitter as HTMLButtonElement | null);
    });
    document.addEventListener("click", (event) => {
      const target = event.target as Element;
      const summary = target.closest("details.finding > summary");
      if (summary) this.take(summary.parentElement as HTMLDetailsElement, false);
      const link = target.closest<HTMLElement>("[data-finding]");
      const wanted = link && document.getElementById(`finding-${link.dataset["finding"]}`);
      if (wanted) {
        event.preventDefault();
        this.take(wanted as HTMLDetailsElement, true);
      }
      const run = target.closest<HTMLElement>("a[data-run]");
      if (run) {
        event.preventDefault();
        this.openRun(run.dataset["run"]!);
      }
    });
    window.addEventListener("hashchange", () => this.fromHash());
    this.fromHash();
  }

  /** Go to the next finding, or the one before; the list is left at its ends. */
  step(by: number): void {
    const all = rows();
    if (!all.length) return;
    const at = all.findIndex((row) => this.number(row) === this.here);
    const next = all[at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + by, 0), all.length - 1)]!;
    this.take(next, false);
    this.focus(next);
  }

  /** Open the finding that is read now and put the focus on one of its buttons, or on its words. */
  reach(selector: string): void {
    const row = rows().find((one) => this.number(one) === this.here);
    if (!row) {
      say("Choose a finding first: j and k go through them.");
      return;
    }
    row.open = true;
    const edit = row.querySelector<HTMLDetailsElement>("[data-edit]");
    if (edit && selector === "textarea") edit.open = true;
    const target = row.querySelector<HTMLElement>(selector);
    if (!target) {
      say("This is not possible for this finding.");
      return;
    }
    const name = row.querySelector<HTMLInputElement>("form.judge input[name=name]:not([type=hidden])");
    const wanted = name && !name.value && selector !== "textarea" ? name : target;
    wanted.focus();
    wanted.scrollIntoView({ block: "nearest" });
  }

  /** Take the page's sections anew, keeping what is open. */
  async reload(url: string = location.pathname + location.search): Promise<void> {
    const response = await fetch(url);
    this.swap(await response.text());
  }

  async post(form: HTMLFormElement, submitter: HTMLButtonElement | null): Promise<void> {
    const body = new URLSearchParams();
    for (const [name, value] of new FormData(form, submitter)) body.append(name, String(value));
    if (submitter) submitter.disabled = true;
    try {
      const response = await fetch(form.action, { method: "POST", body });
      const text = await response.text();
      const problem = this.swap(text);
      const number = /#finding-(\d+)$/.exec(response.url)?.[1];
      if (number) this.here = Number(number);
      this.mark();
      const row = rows().find((one) => this.number(one) === this.here);
      if (row) this.focus(row);
      say(problem ?? this.result(form));
    } catch {
      say("The server did not answer; nothing was changed.");
    } finally {
      if (submitter) submitter.disabled = false;
    }
  }

  private result(form: HTMLFormElement): string {
    if (form.action.endsWith("/report")) return "The report was drafted again.";
    const row = rows().find((one) => this.number(one) === this.here);
    return row ? `Finding ${this.here} is ${row.querySelector("summary .state")?.textContent ?? "changed"}.` : "Done.";
  }

  private swap(text: string): string | null {
    const page = new DOMParser().parseFromString(text, "text/html");
    const open = new Set([...document.querySelectorAll<HTMLDetailsElement>("details[open][id]")].map((one) => one.id));
    for (const old of document.querySelectorAll<HTMLElement>("[data-swap]")) {
      const fresh = page.getElementById(old.id);
      if (fresh) old.replaceChildren(...fresh.childNodes);
    }
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    const user = page.body.dataset["user"];
    if (user) document.body.dataset["user"] = user;
    const problem = page.querySelector("#problem");
    return problem ? (problem.textContent ?? "").replace(/\s+/g, " ").trim() : null;
  }

  private take(row: HTMLDetailsElement, open: boolean): void {
    this.here = this.number(row);
    if (open) {
      row.open = true;
      this.focus(row);
    }
    this.mark();
    const role = (row.dataset["roles"] ?? "").split(" ").find(Boolean);
    if (role) this.shown(role, row.dataset["class"] ?? "");
  }

  private mark(): void {
    const row = rows().find((one) => this.number(one) === this.here);
    const run = row?.dataset["run"] ?? "";
    for (const one of rows()) one.classList.toggle("here", one === row);
    for (const link of document.querySelectorAll<HTMLElement>(".graph a[data-run]")) {
      link.classList.toggle("here", run !== "" && link.dataset["run"] === run);
    }
    for (const path of document.querySelectorAll<SVGElement>(".graph path")) {
      path.classList.toggle("here", run !== "" && (path.dataset["target"] === run || path.dataset["source"] === run));
    }
    for (const said of document.querySelectorAll<HTMLElement>(".report [data-evidence]")) {
      said.classList.toggle("here", (said.dataset["evidence"] ?? "").split(" ").includes(String(this.here)));
    }
  }

  private focus(row: HTMLDetailsElement): void {
    row.querySelector("summary")?.focus({ preventScroll: true });
    row.scrollIntoView({ block: "nearest" });
  }

  private openRun(number: string): void {
    const run = document.getElementById(`run-${number}`) as HTMLDetailsElement | null;
    if (!run) return;
    run.open = true;
    run.querySelector("summary")?.focus({ preventScroll: true });
    run.scrollIntoView({ block: "center" });
    for (const link of document.querySelectorAll<HTMLElement>(".graph a[data-run]")) {
      link.classList.toggle("here", link.dataset["run"] === number);
    }
  }

  private fromHash(): void {
    const target = document.getElementById(location.hash.slice(1));
    if (!(target instanceof HTMLDetailsElement)) return;
    target.open = true;
    if (target.classList.contains("finding")) this.take(target, true);
  }

  private number(row: HTMLElement): number {
    return Number(row.dataset["number"]);
  }
}
