import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  anchor, area, bounds, boxBetween, clipped, described, HANDLES, lasso, moved, type Point, pointAt, resized, scaled, type Shape,
} from '../src/regions.ts';
import { seeded } from './random.ts';

const SIZE = { width: 200, height: 100 };
const BOX: Shape = { kind: 'box', box: [20, 30, 60, 80] };
const TRIANGLE: Shape = { kind: 'polygon', points: [[20, 30], [60, 30], [20, 80]] };
const POINT: Shape = { kind: 'point', at: [20, 30] };

test('a box lies between any two opposite corners, on whole pixels, inside the picture', () => {
  const cases: [Point, Point, readonly number[] | null][] = [
    [[10, 20], [30, 50], [10, 20, 30, 50]],
    [[30, 50], [10, 20], [10, 20, 30, 50]],
    [[30, 20], [10, 50], [10, 20, 30, 50]],
    [[10.4, 19.6], [30.2, 50.4], [10, 20, 30, 50]],
    [[-40, -5], [500, 400], [0, 0, 200, 100]],
    [[10, 20], [10, 50], null],
    [[10, 20], [10.3, 20.3], null],
    [[-9, 5], [-3, 50], null],
  ];
  for (const [a, b, expected] of cases) {
    const shape = boxBetween(a, b, SIZE);
    assert.deepEqual(shape && bounds(shape), expected, `${a} to ${b}`);
  }
});

test('shapes move, and stop at the edges of the picture', () => {
  for (const shape of [BOX, TRIANGLE, POINT]) {
    const [x1, y1, x2, y2] = bounds(shape);
    assert.deepEqual(bounds(moved(shape, [5, -7], SIZE)), [x1 + 5, y1 - 7, x2 + 5, y2 - 7]);
    assert.deepEqual(bounds(moved(shape, [-999, -999], SIZE)), [0, 0, x2 - x1, y2 - y1]);
    assert.deepEqual(bounds(moved(shape, [999, 999], SIZE)), [200 - x2 + x1, 100 - y2 + y1, 200, 100]);
  }
});

test('each handle moves its own sides alone, and none can turn a shape over', () => {
  for (const shape of [BOX, TRIANGLE]) {
    for (const handle of HANDLES) {
      const [x1, y1, x2, y2] = bounds(shape);
      const near: Point = [handle.x < 0 ? 15 : 70, handle.y < 0 ? 25 : 90];
      const expected = [
        handle.x < 0 ? 15 : x1, handle.y < 0 ? 25 : y1,
        handle.x > 0 ? 70 : x2, handle.y > 0 ? 90 : y2,
      ];
      assert.deepEqual(bounds(resized(shape, handle, near, SIZE)), expected, JSON.stringify(handle));
      const far: Point = [handle.x < 0 ? 999 : -999, handle.y < 0 ? 999 : -999];
      const [left, top, right, bottom] = bounds(resized(shape, handle, far, SIZE));
      assert.ok(right > left && bottom > top, JSON.stringify(handle));
    }
  }
});

test('random drags keep every shape inside the picture and larger than nothing', () => {
  const random = seeded(7);
  const anywhere = (): Point => [random() * 400 - 100, random() * 300 - 100];
  for (let round = 0; round < 300; round++) {
    const handle = HANDLES[Math.floor(random() * 8)] as (typeof HANDLES)[number];
    for (const shape of [moved(BOX, anywhere(), SIZE), resized(TRIANGLE, handle, anywhere(), SIZE), pointAt(anywhere(), SIZE)]) {
      const [x1, y1, x2, y2] = bounds(shape);
      assert.ok(0 <= x1 && 0 <= y1 && x2 <= 200 && y2 <= 100, JSON.stringify(shape));
      assert.ok(shape.kind === 'point' || (x2 - x1 >= 1 && y2 - y1 >= 1), JSON.stringify(shape));
    }
  }
});

test('a lasso keeps the corners that matter', () => {
  const square: Point[] = [];
  for (let step = 0; step <= 40; step++) square.push([20 + step, 20]);
  for (let step = 0; step <= 40; step++) square.push([60, 20 + step]);
  for (let step = 0; step <= 40; step++) square.push([60 - step, 60]);
  const shape = lasso(square, SIZE, 1);
  assert.deepEqual(shape, { kind: 'polygon', points: [[20, 20], [60, 20], [60, 60], [20, 60]] });
  assert.equal(lasso([[10, 10], [50, 10], [90, 10]], SIZE, 1), null, 'a line encloses nothing');
  assert.equal(lasso([[10, 10]], SIZE, 1), null);
});

test('the number of a region stands where one looks for it', () => {
  assert.deepEqual([BOX, POINT, TRIANGLE].map(anchor), [[20, 30], [20, 30], [20, 30]]);
  assert.deepEqual(anchor({ kind: 'polygon', points: [[20, 30], [60, 10], [20, 80]] }), [60, 10]);
});

test('the area of a polygon, either way round', () => {
  assert.equal(area([[0, 0], [10, 0], [0, 10]]), 50);
  assert.equal(area([[0, 10], [10, 0], [0, 0]]), 50);
});

test('clipping keeps what lies inside', () => {
  assert.deepEqual(clipped({ kind: 'box', box: [-10, 50, 50, 400] }, SIZE), { kind: 'box', box: [0, 50, 50, 100] });
  assert.equal(clipped({ kind: 'box', box: [210, 0, 220, 10] }, SIZE), null);
  assert.equal(clipped({ kind: 'point', at: [201, 3] }, SIZE), null);
  assert.deepEqual(clipped(POINT, SIZE), POINT);
});

test('scaling to a picture twice as large and back is as before', () => {
  for (const shape of [BOX, TRIANGLE, POINT]) {
    const double = { width: 400, height: 200 };
    assert.deepEqual(scaled(scaled(shape, SIZE, double), double, SIZE), shape);
  }
});

test('regions are read aloud with their number and place', () => {
  assert.equal(described({ id: 3, shape: BOX }), 'Region 3, box, 40 by 50 pixels at 20, 30');
  assert.equal(described({ id: 4, shape: POINT }), 'Region 4, point at 20, 30');
});
