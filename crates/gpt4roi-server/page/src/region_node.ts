// How regions look on the stage: their lines, numbers and handles, in pixels of the screen.

import { assign, svg } from './element.ts';
import { colourClass } from './palette.ts';
import { anchor, type Box, described, type Handle, HANDLES, type Point, type Region, type Shape } from './regions.ts';
import { toScreen, type View } from './view.ts';

interface Marks {
  readonly selected: boolean;
  /** Pointed at, here or in words. */
  readonly lit: boolean;
}

/** The elements of one region. */
export class RegionNode {
  readonly group: SVGGElement;
  readonly #read = svg('path', { class: 'read' });
  readonly #halo = svg('path', { class: 'halo' });
  readonly #line = svg('path', { class: 'line' });
  readonly #plate = svg('rect', { rx: 4, height: 20 });
  readonly #number = svg('text', { y: 14.5, 'text-anchor': 'middle' });
  readonly #tag = svg('g', { class: 'tag' });

  constructor(readonly id: number) {
    this.group = svg('g', { tabindex: 0, role: 'button', 'data-region': id });
    this.#number.textContent = String(id);
    const width = 14 + 7 * String(id).length;
    assign(this.#plate, { width });
    assign(this.#number, { x: width / 2 });
    this.#tag.append(this.#plate, this.#number);
    this.group.append(this.#read, this.#halo, this.#line, this.#tag);
  }

  draw(region: Region, view: View, { selected, lit }: Marks): void {
    const state = `${selected ? ' selected' : ''}${lit ? ' lit' : ''}`;
    assign(this.group, {
      class: `region ${region.shape.kind} ${colourClass(region.id)}${state}`,
      'aria-label': described(region),
      'aria-pressed': String(selected),
    });
    const path = shapePath(region.shape, view);
    assign(this.#halo, { d: path });
    assign(this.#line, { d: path });
    const read = region.shape.kind !== 'box' && region.read;
    assign(this.#read, { d: read ? shapePath({ kind: 'box', box: read }, view) : '' });
    const [x, y] = this.#tagPlace(region.shape, view);
    assign(this.#tag, { transform: `translate(${x} ${y})` });
  }

  #tagPlace(shape: Shape, view: View): Point {
    const [x, y] = toScreen(view, anchor(shape));
    if (shape.kind === 'point') return [x + 10, y - 26];
    return y >= 22 ? [x - 1.5, y - 21] : [x + 4, y + 4];
  }
}

export function handleNode(_: Handle, index: number): SVGGElement {
  const node = svg('g', { 'data-handle': index, class: 'handle' });
  const { x, y } = HANDLES[index] as Handle;
  // The area to grab reaches outward, so that a small region can still be moved by its middle.
  node.append(svg('circle', { class: 'grip', r: 22, cx: 12 * x, cy: 12 * y }), svg('circle', { class: 'dot', r: 6 }));
  return node;
}

/** Where a handle of a box is. */
export function handlePlace({ x, y }: Handle, [x1, y1, x2, y2]: Box): Point {
  return [x < 0 ? x1 : x > 0 ? x2 : (x1 + x2) / 2, y < 0 ? y1 : y > 0 ? y2 : (y1 + y2) / 2];
}

export function onScreen([x1, y1, x2, y2]: Box, view: View): Box {
  return [...toScreen(view, [x1, y1]), ...toScreen(view, [x2, y2])];
}

export function shapePath(shape: Shape, view: View): string {
  switch (shape.kind) {
    case 'box': {
      const [x1, y1, x2, y2] = onScreen(shape.box, view);
      return `M${x1} ${y1}H${x2}V${y2}H${x1}Z`;
    }
    case 'polygon':
      return `${linePath(shape.points.map((point) => toScreen(view, point)))}Z`;
    case 'point':
      return markPath(toScreen(view, shape.at));
  }
}

export function linePath(points: readonly Point[]): string {
  return points.map(([x, y], index) => `${index ? 'L' : 'M'}${x} ${y}`).join('');
}

/** A ring with a dot in the middle. */
export function markPath([x, y]: Point): string {
  return `M${x - 9} ${y}a9 9 0 1 0 18 0a9 9 0 1 0 -18 0M${x - 1} ${y}a1 1 0 1 0 2 0a1 1 0 1 0 -2 0`;
}
