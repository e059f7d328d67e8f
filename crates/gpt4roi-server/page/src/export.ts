// Regions and conversation as files: an annotated picture, JSON, and COCO.

import { type Conversation, readBox, type Round } from './conversation.ts';
import { colour } from './palette.ts';
import { decode, encoded, type Picture } from './picture.ts';
import { anchor, area, bounds, type Point, type Region, type Shape } from './regions.ts';

export const FORMAT = 'gpt4roi-regions';

type Pictured = Pick<Picture, 'name' | 'width' | 'height'>;

/** Everything: the regions as drawn, in pixels, and what was said about them. */
export function toJson({ name, width, height }: Pictured, { title, regions, rounds }: Conversation): object {
  return {
    format: FORMAT,
    version: 1,
    title,
    image: { name, width, height },
    regions: regions.map(written),
    rounds: rounds.map(({ question, answer, probability, each, regions, state }) => ({
      question,
      answer: each.length > 0 ? each : answer,
      ...(typeof probability === 'number' && { probability }),
      regions: regions.map(written),
      state,
    })),
  };
}

/**
 * COCO's form. A point is an annotation with one keypoint, an outline has its polygon as
 * segmentation; what was found by asking about each region stands in `caption`, and how sure the
 * model was in `caption_probability`.
 */
export function toCoco({ name, width, height }: Pictured, { regions, rounds }: Conversation): object {
  const captions = new Map(rounds.flatMap((round) => round.each.map((each) => [each.region, each] as const)));
  return {
    info: { description: 'Regions drawn on the page of gpt4roi serve' },
    images: [{ id: 1, file_name: name, width, height }],
    categories: [{ id: 1, name: 'region', keypoints: ['point'], skeleton: [] }],
    annotations: regions.map((region) => ({
      id: region.id,
      image_id: 1,
      category_id: 1,
      iscrowd: 0,
      ...cocoShape(region),
      ...cocoCaption(captions.get(region.id)),
    })),
  };
}

function cocoCaption(description: Round['each'][number] | undefined): object {
  if (!description) return {};
  const { text, probability } = description;
  return { caption: text, ...(typeof probability === 'number' && { caption_probability: probability }) };
}

function written({ id, shape, read }: Region): object {
  const drawn = shape.kind === 'box' ? { box: shape.box } : shape.kind === 'point' ? { point: shape.at } : { polygon: shape.points };
  return { id, ...drawn, ...(read && shape.kind !== 'box' && { read }) };
}

function cocoShape(region: Region): object {
  const { shape } = region;
  const [x1, y1, x2, y2] = shape.kind === 'point' ? readBox(region) : bounds(shape);
  const bbox = [x1, y1, x2 - x1, y2 - y1];
  switch (shape.kind) {
    case 'box':
      return { bbox, area: (x2 - x1) * (y2 - y1), segmentation: [] };
    case 'polygon':
      return { bbox, area: area(shape.points), segmentation: [shape.points.flat()] };
    case 'point':
      return { bbox, area: (x2 - x1) * (y2 - y1), segmentation: [], keypoints: [...shape.at, 2], num_keypoints: 1 };
  }
}

/** The picture with its regions drawn onto it, in its own size. */
export async function toPng(picture: Picture, regions: readonly Region[]): Promise<Blob> {
  const canvas = document.createElement('canvas');
  canvas.width = picture.width;
  canvas.height = picture.height;
  const context = canvas.getContext('2d') as CanvasRenderingContext2D;
  const bitmap = await decode(picture.file, picture.name);
  context.drawImage(bitmap, 0, 0, picture.width, picture.height);
  bitmap.close();
  const line = Math.max(2, Math.round(Math.max(picture.width, picture.height) / 300));
  for (const region of regions) drawRegion(context, region, line);
  return encoded(canvas, 'image/png');
}

function drawRegion(context: CanvasRenderingContext2D, region: Region, line: number): void {
  const { fill, ink } = colour(region.id);
  context.lineJoin = 'round';
  const path = outline(region.shape, 3 * line);
  context.strokeStyle = 'rgb(255 255 255 / 85%)';
  context.lineWidth = 2 * line;
  context.stroke(path);
  context.strokeStyle = fill;
  context.lineWidth = line;
  context.stroke(path);
  drawNumber(context, region, 7 * line, fill, ink);
}

function drawNumber(context: CanvasRenderingContext2D, region: Region, height: number, fill: string, ink: string): void {
  const text = String(region.id);
  context.font = `bold ${height * 0.8}px sans-serif`;
  const width = Math.max(height, context.measureText(text).width + height * 0.5);
  const [x, y] = numberPlace(anchor(region.shape), width, height, context.canvas);
  context.fillStyle = fill;
  context.fillRect(x, y, width, height);
  context.fillStyle = ink;
  context.textAlign = 'center';
  context.textBaseline = 'middle';
  context.fillText(text, x + width / 2, y + height * 0.54);
}

/** Above its place, or under it where there is no room above. */
function numberPlace([x, y]: Point, width: number, height: number, canvas: { width: number }): [number, number] {
  return [Math.min(x, canvas.width - width), y >= height ? y - height : y];
}

function outline(shape: Shape, radius: number): Path2D {
  const path = new Path2D();
  switch (shape.kind) {
    case 'box': {
      const [x1, y1, x2, y2] = shape.box;
      path.rect(x1, y1, x2 - x1, y2 - y1);
      break;
    }
    case 'polygon':
      for (const [x, y] of shape.points) path.lineTo(x, y);
      path.closePath();
      break;
    case 'point':
      path.arc(...shape.at, radius, 0, 2 * Math.PI);
  }
  return path;
}
