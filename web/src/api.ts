/** The server's JSON interface, as far as the page uses it. */

export interface Part {
  name: string;
  title: string;
  kind: "image" | "labels" | "map";
  unit: string;
}

export interface VolumeInfo {
  role: string;
  run: number;
  unit: string;
  shape: [number, number, number];
  spacing: [number, number, number];
  classes: string[];
  content: string;
  correctable: boolean;
  parts: Part[];
}

export interface Corrected {
  content: string;
  changed: number;
  findings: number[];
}

/** A refusal of the server, in its own words. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    readonly problem: { title?: string; detail?: string; value?: unknown; expected?: string | null },
  ) {
    super(problem.detail ?? problem.title ?? `the server answered ${status}`);
  }
}

const csrf = (): string => document.querySelector<HTMLMetaElement>("meta[name=csrf]")?.content ?? "";

async function answered(response: Response): Promise<Response> {
  if (response.ok) return response;
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    // No problem in JSON: the status has to do.
  }
  throw new Refused(response.status, problem);
}

export async function volumes(caseId: string): Promise<VolumeInfo[]> {
  const response = await answered(await fetch(`/api/cases/${caseId}`));
  return (await response.json()).volumes;
}

export const volumeUrl = (caseId: string, volume: VolumeInfo, part: string): string =>
  `/api/cases/${caseId}/volumes/${volume.role}/${encodeURIComponent(part)}.nii.gz?content=${volume.content}`;

/** Give the reader's name, which this browser's verdicts are signed with from then on. */
export async function sign(name: string): Promise<void> {
  const headers = { "Content-Type": "application/json", "X-Sagittal-CSRF": csrf() };
  await answered(await fetch("/api/session", { method: "POST", headers, body: JSON.stringify({ name }) }));
}

/** Send a corrected mask; `edited` is the content that the reader worked on. */
export async function correct(
  caseId: string,
  role: string,
  edited: string,
  mask: Blob,
  note: string,
): Promise<Corrected> {
  const query = new URLSearchParams({ note });
  const response = await fetch(`/api/cases/${caseId}/volumes/${role}/correction?${query}`, {
    method: "POST",
    headers: { "If-Match": `"${edited}"`, "X-Sagittal-CSRF": csrf(), "Content-Type": "application/gzip" },
    body: mask,
  });
  return (await answered(response)).json();
}
