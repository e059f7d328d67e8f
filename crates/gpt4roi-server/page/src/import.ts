// Regions from files: this page's JSON, the command line's, COCO, or a plain list of boxes.

import { Fault } from './api.ts';
import { clipped, type Point, type Region, type Shape, type Size, scaled } from './regions.ts';

export interface Imported {
  /** The number that it has in the file. */
  readonly id: number | null;
  readonly shape: Shape;
}

export interface Import {
  readonly regions: readonly Imported[];
  /** How many were left out because they lie outside the picture. */
  readonly outside: number;
}

/** The highest number that a file may give. Later regions count on from it, and the server takes six digits. */
export const HIGHEST = 999;

/** Gives regions numbers that are not `taken`: their own where they can keep it, else the next ones. */
export function numbered(found: readonly Imported[], taken: ReadonlySet<number>): Region[] {
  const used = new Set(taken);
  const own = found.map(({ id }) => {
    const kept = id !== null && id <= HIGHEST && !used.has(id) ? id : null;
    if (kept !== null) used.add(kept);
    return kept;
  });
  let last = Math.max(0, ...used);
  return found.map(({ shape }, index) => ({ id: own[index] ?? ++last, shape }));
}

type Json = { readonly [key: string]: unknown };

/** Reads the regions of a file for a picture of this name and size. */
export function readRegions(text: string, picture: Size & { readonly name: string }): Import {
  const file = parsed(text);
  const found = isObject(file) && Array.isArray(file.annotations) ? fromCoco(file, picture) : fromJson(file, picture);
  const regions = found.flatMap(({ id, shape }) => {
    const inside = clipped(shape, picture);
    return inside ? [{ id, shape: inside }] : [];
  });
  if (found.length === 0) throw new Fault('The file has no regions.');
  return { regions, outside: found.length - regions.length };
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new Fault('The file is not JSON. Import COCO annotations, or JSON that this page, “gpt4roi ask --json” or “gpt4roi describe --json” wrote.');
  }
}

function fromCoco(file: Json, picture: Size & { readonly name: string }): Imported[] {
  const images = (Array.isArray(file.images) ? file.images : []).filter(isObject);
  const image = images.find(({ file_name }) => baseName(file_name) === baseName(picture.name)) ?? images[0];
  if (images.length > 1 && baseName(image?.file_name) !== baseName(picture.name)) {
    throw new Fault(`The file is about ${images.length} pictures, and none of them is called “${picture.name}”.`);
  }
  const from = sizeOf(image) ?? picture;
  const annotations = (file.annotations as unknown[]).filter(isObject);
  return annotations
    .filter(({ image_id }) => image === undefined || image_id === image.id)
    .map((annotation, index) => ({
      id: null,
      shape: scaled(cocoShape(annotation, `annotations[${index}]`), from, picture),
    }));
}

function cocoShape(annotation: Json, where: string): Shape {
  const { keypoints, segmentation, bbox } = annotation;
  if (Array.isArray(keypoints) && annotation.num_keypoints === 1) {
    const [x, y] = numbers(keypoints, 3, `${where}.keypoints`) as [number, number, number];
    return { kind: 'point', at: [x, y] };
  }
  if (Array.isArray(segmentation) && segmentation.length === 1) {
    return { kind: 'polygon', points: corners(segmentation[0], `${where}.segmentation[0]`) };
  }
  const [x, y, width, height] = numbers(bbox, 4, `${where}.bbox`) as [number, number, number, number];
  return box([x, y, x + width, y + height], `${where}.bbox`);
}

function fromJson(file: unknown, picture: Size): Imported[] {
  const list = Array.isArray(file) ? file : isObject(file) ? (file.regions ?? described(file.descriptions)) : undefined;
  if (!Array.isArray(list)) throw new Fault('The file has neither “regions” nor “descriptions” nor “annotations”.');
  const from = (isObject(file) && sizeOf(file.image)) || picture;
  return list.map((entry: unknown, index) => {
    const where = `regions[${index}]`;
    const region: Json = isObject(entry) ? entry : { box: entry };
    const { shape, unit } = { shape: jsonShape(region, where), unit: unitOf(region.coords, from, where) };
    return { id: idOf(region.id), shape: scaled(shape, unit, picture) };
  });
}

/** The regions of what “gpt4roi describe --json” wrote. */
function described(descriptions: unknown): unknown {
  return Array.isArray(descriptions) ? descriptions.map((entry) => (isObject(entry) ? entry.region : entry)) : undefined;
}

function jsonShape(region: Json, where: string): Shape {
  if (region.point !== undefined) {
    const [x, y] = numbers(region.point, 2, `${where}.point`) as [number, number];
    return { kind: 'point', at: [x, y] };
  }
  if (region.polygon !== undefined) {
    return { kind: 'polygon', points: corners(flat(region.polygon), `${where}.polygon`) };
  }
  if (region.bbox !== undefined) {
    const [x, y, width, height] = numbers(region.bbox, 4, `${where}.bbox`) as [number, number, number, number];
    return box([x, y, x + width, y + height], `${where}.bbox`);
  }
  const edges = numbers(region.box, 4, `${where}.box`) as [number, number, number, number];
  const shape = box(edges, `${where}.box`);
  // Programs tell the box that was grown around a point.
  const [x1, y1, x2, y2] = edges;
  return region.origin === 'point' ? { kind: 'point', at: [(x1 + x2) / 2, (y1 + y2) / 2] } : shape;
}

/** The size of the picture that the coordinates of a region count in. */
function unitOf(coords: unknown, pixels: Size, where: string): Size {
  switch (coords ?? 'pixel') {
    case 'pixel':
      return pixels;
    case 'norm':
      return { width: 1, height: 1 };
    case 'norm1000':
      return { width: 1000, height: 1000 };
    default:
      throw new Fault(`${where}.coords is neither “pixel” nor “norm” nor “norm1000”.`);
  }
}

function box([x1, y1, x2, y2]: readonly [number, number, number, number], where: string): Shape {
  if (x2 <= x1 || y2 <= y1) throw new Fault(`${where} is empty: its right and bottom have to lie beyond its left and top.`);
  return { kind: 'box', box: [x1, y1, x2, y2] };
}

function corners(values: unknown, where: string): Point[] {
  const length = Array.isArray(values) ? values.length : 0;
  if (length < 6 || length % 2 !== 0) throw new Fault(`${where} has to list three corners or more as x, y, x, y, ….`);
  const all = numbers(values, length, where);
  return Array.from({ length: length / 2 }, (_, index) => [all[2 * index], all[2 * index + 1]] as [number, number]);
}

function numbers(values: unknown, count: number, where: string): number[] {
  const sound = Array.isArray(values) && values.length === count && values.every((value) => Number.isFinite(value));
  if (!sound) throw new Fault(`${where} has to be ${count} numbers.`);
  return values as number[];
}

function flat(values: unknown): unknown {
  return Array.isArray(values) ? values.flat() : values;
}

function idOf(id: unknown): number | null {
  const number = Number(String(id ?? '').replace(/^region/, ''));
  return Number.isSafeInteger(number) && number > 0 ? number : null;
}

function sizeOf(image: unknown): Size | null {
  if (!isObject(image)) return null;
  const { width, height } = image;
  return typeof width === 'number' && typeof height === 'number' && width > 0 && height > 0 ? { width, height } : null;
}

function baseName(path: unknown): string {
  return String(path ?? '').replace(/^.*[/\\]/, '');
}

function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
