import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Point } from '../src/regions.ts';
import { fit, panned, toPicture, toScreen, zoomed } from '../src/view.ts';
import { seeded } from './random.ts';

const near = (a: Point, b: Point) => assert.ok(Math.hypot(a[0] - b[0], a[1] - b[1]) < 1e-6, `${a} is not ${b}`);

test('a fitted picture is whole and in the middle', () => {
  const view = fit({ width: 400, height: 100 }, { width: 840, height: 600 });
  assert.deepEqual(view, { scale: 2, x: 20, y: 200 });
});

test('zooming keeps the place under the cursor, panning the scale', () => {
  const random = seeded(3);
  let view = fit({ width: 400, height: 100 }, { width: 840, height: 600 });
  for (let round = 0; round < 100; round++) {
    const cursor: Point = [random() * 840, random() * 600];
    const place = toPicture(view, cursor);
    view = zoomed(view, 0.5 + random(), cursor, 0.1);
    near(toScreen(view, place), cursor);
    near(toPicture(view, toScreen(view, [17, 23])), [17, 23]);
  }
});

test('a picture can not be lost from sight', () => {
  const [picture, stage] = [{ width: 400, height: 100 }, { width: 840, height: 600 }];
  const view = fit(picture, stage);
  for (const by of [[9999, 9999], [-9999, -9999]] as const) {
    const { x, y, scale } = panned(view, by, picture, stage);
    assert.ok(x < 840 && y < 600 && x + 400 * scale > 0 && y + 100 * scale > 0);
  }
});
