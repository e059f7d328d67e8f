// Regions: what people draw around a thing, in pixels of the upright picture.

export type Point = readonly [x: number, y: number];
/** Left, top, right, bottom. */
export type Box = readonly [x1: number, y1: number, x2: number, y2: number];
export interface Size {
  readonly width: number;
  readonly height: number;
}

export type Shape =
  | { readonly kind: 'box'; readonly box: Box }
  | { readonly kind: 'point'; readonly at: Point }
  | { readonly kind: 'polygon'; readonly points: readonly Point[] };

export interface Region {
  readonly id: number;
  readonly shape: Shape;
  /** The box that the model read, known once the server has answered. */
  readonly read?: Box;
}

/** The corner or side of a box that is being dragged: -1 is left or top, 1 right or bottom, 0 neither. */
export interface Handle {
  readonly x: -1 | 0 | 1;
  readonly y: -1 | 0 | 1;
}

export const HANDLES: readonly Handle[] = [
  { x: -1, y: -1 }, { x: 0, y: -1 }, { x: 1, y: -1 }, { x: 1, y: 0 },
  { x: 1, y: 1 }, { x: 0, y: 1 }, { x: -1, y: 1 }, { x: -1, y: 0 },
];

/** The smallest box around a shape; a point's is empty. */
export function bounds(shape: Shape): Box {
  switch (shape.kind) {
    case 'box':
      return shape.box;
    case 'point':
      return [...shape.at, ...shape.at];
    case 'polygon': {
      const xs = shape.points.map(([x]) => x);
      const ys = shape.points.map(([, y]) => y);
      return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
    }
  }
}

/** Where the number of a region belongs: at the upper left of a box, on top of an outline. */
export function anchor(shape: Shape): Point {
  if (shape.kind === 'polygon') return shape.points.reduce((top, point) => (point[1] < top[1] ? point : top));
  const [x, y] = bounds(shape);
  return [x, y];
}

/** A box between two opposite corners, on whole pixels and inside the picture; `null` if nothing is left of it. */
export function boxBetween(a: Point, b: Point, size: Size): Shape | null {
  const [ax, ay] = clamp(a, size);
  const [bx, by] = clamp(b, size);
  const box: Box = [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)];
  return box[2] > box[0] && box[3] > box[1] ? { kind: 'box', box } : null;
}

export function pointAt(at: Point, size: Size): Shape {
  return { kind: 'point', at: clamp(at, size) };
}

/** A closed line through these points; `null` if it encloses nothing. `tolerance` is how far it may be simplified. */
export function lasso(points: readonly Point[], size: Size, tolerance: number): Shape | null {
  const kept = simplified(points.map((point) => clamp(point, size)), tolerance);
  return kept.length >= 3 && area(kept) >= 1 ? { kind: 'polygon', points: kept } : null;
}

/** A shape moved by so many pixels, but not out of the picture. */
export function moved(shape: Shape, [dx, dy]: Point, size: Size): Shape {
  const [x1, y1, x2, y2] = bounds(shape);
  const right = Math.round(limit(dx, -x1, size.width - x2));
  const down = Math.round(limit(dy, -y1, size.height - y2));
  return mapped(shape, ([x, y]) => [x + right, y + down]);
}

/** A shape with one corner or side of its box dragged to a place; it never turns over or vanishes. */
export function resized(shape: Shape, handle: Handle, to: Point, size: Size): Shape {
  const [x1, y1, x2, y2] = bounds(shape);
  const [x, y] = clamp(to, size);
  return fitted(shape, [
    handle.x < 0 ? Math.min(x, x2 - 1) : x1,
    handle.y < 0 ? Math.min(y, y2 - 1) : y1,
    handle.x > 0 ? Math.max(x, x1 + 1) : x2,
    handle.y > 0 ? Math.max(y, y1 + 1) : y2,
  ]);
}

/** A shape of a picture of one size, in a picture of another. */
export function scaled(shape: Shape, from: Size, to: Size): Shape {
  const [sx, sy] = [to.width / from.width, to.height / from.height];
  return mapped(shape, ([x, y]) => [x * sx, y * sy]);
}

/** What is left of a shape inside the picture, `null` if nothing is. */
export function clipped(shape: Shape, { width, height }: Size): Shape | null {
  const [x1, y1, x2, y2] = bounds(shape);
  if (shape.kind === 'point') return x1 >= 0 && y1 >= 0 && x1 <= width && y1 <= height ? shape : null;
  if (x1 >= width || y1 >= height || x2 <= 0 || y2 <= 0) return null;
  return mapped(shape, ([x, y]) => [limit(x, 0, width), limit(y, 0, height)]);
}

/** How a region is read aloud. */
export function described({ id, shape }: Region): string {
  const [x1, y1, x2, y2] = bounds(shape).map(Math.round) as [number, number, number, number];
  switch (shape.kind) {
    case 'point':
      return `Region ${id}, point at ${x1}, ${y1}`;
    case 'box':
      return `Region ${id}, box, ${x2 - x1} by ${y2 - y1} pixels at ${x1}, ${y1}`;
    case 'polygon':
      return `Region ${id}, outline, ${x2 - x1} by ${y2 - y1} pixels at ${x1}, ${y1}`;
  }
}

export function sameShape(a: Shape, b: Shape): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

export function area(points: readonly Point[]): number {
  const doubled = points.reduce((sum, [x, y], index) => {
    const [nx, ny] = points[(index + 1) % points.length] as Point;
    return sum + x * ny - nx * y;
  }, 0);
  return Math.abs(doubled) / 2;
}

/** The place on whole pixels, inside the picture. */
export function clamp([x, y]: Point, { width, height }: Size): Point {
  return [Math.round(limit(x, 0, width)), Math.round(limit(y, 0, height))];
}

function limit(value: number, low: number, high: number): number {
  return Math.max(low, Math.min(high, value));
}

function mapped(shape: Shape, change: (point: Point) => Point): Shape {
  switch (shape.kind) {
    case 'point':
      return { kind: 'point', at: change(shape.at) };
    case 'polygon':
      return { kind: 'polygon', points: shape.points.map(change) };
    case 'box': {
      const [x1, y1, x2, y2] = shape.box;
      return { kind: 'box', box: [...change([x1, y1]), ...change([x2, y2])] };
    }
  }
}

function fitted(shape: Shape, box: Box): Shape {
  const [x1, y1, x2, y2] = bounds(shape);
  const across = (value: number, low: number, high: number, newLow: number, newHigh: number) =>
    high === low ? value : newLow + ((value - low) / (high - low)) * (newHigh - newLow);
  return mapped(shape, ([x, y]) => [across(x, x1, x2, box[0], box[2]), across(y, y1, y2, box[1], box[3])]);
}

/** Ramer, Douglas and Peucker: drops points that lie within `tolerance` of the line between those that are kept. */
function simplified(points: readonly Point[], tolerance: number): readonly Point[] {
  if (points.length < 3) return points;
  const first = points[0] as Point;
  const last = points[points.length - 1] as Point;
  const distances = points.map((point) => distanceToSegment(point, first, last));
  const farthest = distances.reduce((best, distance, index) => (distance > (distances[best] ?? 0) ? index : best), 0);
  if ((distances[farthest] ?? 0) <= tolerance) return first[0] === last[0] && first[1] === last[1] ? [first] : [first, last];
  const before = simplified(points.slice(0, farthest + 1), tolerance);
  return [...before.slice(0, -1), ...simplified(points.slice(farthest), tolerance)];
}

function distanceToSegment([x, y]: Point, [ax, ay]: Point, [bx, by]: Point): number {
  const [dx, dy] = [bx - ax, by - ay];
  const along = dx || dy ? limit(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1) : 0;
  return Math.hypot(x - ax - along * dx, y - ay - along * dy);
}
