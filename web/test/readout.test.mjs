import assert from "node:assert/strict";
import { test } from "node:test";
import { classColour, FULL_FROM, labelMap, ramp, shade } from "../node_modules/.tested/colour.js";
import { changed, endsOf, labelSaid, placeSaid, said, windowOf } from "../node_modules/.tested/readout.js";

test("a value is said with its unit and few digits", () => {
  assert.equal(said(1234.56, "a.u."), "1235 a.u.");
  assert.equal(said(-12.4, "HU"), "-12 HU");
  assert.equal(said(0.456, "bits"), "0.46 bits");
  assert.equal(said(0.5, "1"), "0.50");
});

test("nothing rounds to minus zero, and what is no number is said so", () => {
  assert.equal(said(-0.001, "1"), "0.00");
  assert.equal(said(-0.4, "HU"), "0 HU");
  assert.equal(said(NaN, "HU"), "no value");
});

test("a place names the side of the body", () => {
  assert.equal(placeSaid([-12, 3.04, 0]), "L 12.0  A 3.0  S 0.0 mm");
});

test("label 0 is none, and a label beyond the classes keeps its number", () => {
  assert.deepEqual([0, 1, 3, 7].map((v) => labelSaid(v, ["csf", "gm", "wm"])), ["none", "csf", "wm", "label 7"]);
});

test("a window comes back from its level and width", () => {
  const { level, width } = windowOf(-160, 240);
  assert.deepEqual(endsOf(level, width), [-160, 240]);
});

test("changed voxels are counted", () => {
  assert.equal(changed(Uint8Array.of(1, 2, 0, 3), Uint8Array.of(1, 0, 0, 2)), 2);
});

test("a label map has a clear colour for no class and one for each class", () => {
  const map = labelMap(["csf", "gm"]);
  assert.deepEqual(map.A, [0, 255, 255]);
  assert.deepEqual(map.I, [0, 1, 2]);
  assert.deepEqual([map.R[2], map.G[2], map.B[2]], [...classColour("gm", 1)]);
});

test("a map is clear where it is 0, and shown in full from where it hides the image", () => {
  const [low, high] = [[10, 20, 30], [200, 100, 50]];
  assert.equal(ramp(low, high).A[0], 0);
  assert.deepEqual(shade(0, low, high), [0, 0, 0]);
  assert.deepEqual(shade(FULL_FROM, low, high), low);
  assert.deepEqual(shade(1, low, high).map(Math.round), high);
});
