// Where the picture lies on the stage: a scale and an offset in pixels of the screen.

import type { Point, Size } from './regions.ts';

export interface View {
  readonly scale: number;
  readonly x: number;
  readonly y: number;
}

const MARGIN = 20;
const LARGEST_FIT = 6;

/** The whole picture in the middle of the stage. */
export function fit(picture: Size, stage: Size): View {
  const room = Math.min((stage.width - 2 * MARGIN) / picture.width, (stage.height - 2 * MARGIN) / picture.height);
  const scale = Math.max(0.001, Math.min(LARGEST_FIT, room));
  return {
    scale,
    x: (stage.width - picture.width * scale) / 2,
    y: (stage.height - picture.height * scale) / 2,
  };
}

/** Larger or smaller, with the place under `at` staying where it is. */
export function zoomed(view: View, factor: number, at: Point, least: number): View {
  const scale = Math.max(least, Math.min(64, view.scale * factor));
  const grown = scale / view.scale;
  return { scale, x: at[0] - (at[0] - view.x) * grown, y: at[1] - (at[1] - view.y) * grown };
}

/** Moved, with some of the picture always left in sight. */
export function panned(view: View, [dx, dy]: Point, picture: Size, stage: Size): View {
  const keep = (value: number, length: number, room: number) =>
    Math.max(Math.min(60, length) - length, Math.min(room - Math.min(60, length), value));
  return {
    scale: view.scale,
    x: keep(view.x + dx, picture.width * view.scale, stage.width),
    y: keep(view.y + dy, picture.height * view.scale, stage.height),
  };
}

export function toPicture(view: View, [x, y]: Point): Point {
  return [(x - view.x) / view.scale, (y - view.y) / view.scale];
}

export function toScreen(view: View, [x, y]: Point): Point {
  return [x * view.scale + view.x, y * view.scale + view.y];
}
