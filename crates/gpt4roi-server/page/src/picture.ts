// Pictures: from a file, the clipboard or a camera to something that the server reads.

import { Fault } from './api.ts';
import type { Size } from './regions.ts';

export interface Picture extends Size {
  readonly id: string;
  readonly name: string;
  readonly file: Blob;
  /** The server's name for it; the server forgets it after a while. */
  readonly handle: string | null;
}

/** What the server decodes. Everything else that the browser can show is drawn anew. */
const READ_BY_SERVER = ['image/png', 'image/jpeg', 'image/webp'];
const MOST_BYTES = 20 * 1024 * 1024;
const MOST_PIXELS = 50_000_000;

export async function openPicture(file: Blob, name: string): Promise<Picture> {
  const bitmap = await decode(file, name);
  const fits = READ_BY_SERVER.includes(file.type) && file.size <= MOST_BYTES && bitmap.width * bitmap.height <= MOST_PIXELS;
  const kept = fits ? { file, width: bitmap.width, height: bitmap.height } : await redrawn(bitmap);
  bitmap.close();
  return { id: freshId(), name, handle: null, ...kept };
}

/** The picture as the browser shows it, for a server that sees another size in the file. */
export async function reopened(picture: Picture): Promise<Picture> {
  const bitmap = await decode(picture.file, picture.name);
  const kept = await redrawn(bitmap);
  bitmap.close();
  return { ...picture, ...kept, handle: null };
}

export async function decode(file: Blob, name: string): Promise<ImageBitmap> {
  try {
    return await createImageBitmap(file, { imageOrientation: 'from-image' });
  } catch {
    throw new Fault(`“${name}” is no picture that this browser can open. Choose a PNG, JPEG or WebP file.`);
  }
}

export function freshId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** Drawn into a PNG, or a JPEG where that would be too large, and reduced where the server would refuse its size. */
async function redrawn(bitmap: ImageBitmap): Promise<{ file: Blob } & Size> {
  const scale = Math.min(1, Math.sqrt(MOST_PIXELS / (bitmap.width * bitmap.height)));
  const size = { width: Math.max(1, Math.floor(bitmap.width * scale)), height: Math.max(1, Math.floor(bitmap.height * scale)) };
  const canvas = document.createElement('canvas');
  Object.assign(canvas, size);
  canvas.getContext('2d')?.drawImage(bitmap, 0, 0, size.width, size.height);
  const png = await encoded(canvas, 'image/png');
  return { file: png.size <= MOST_BYTES ? png : await encoded(canvas, 'image/jpeg'), ...size };
}

export function encoded(canvas: HTMLCanvasElement, type: string): Promise<Blob> {
  return new Promise((resolve, reject) => {
    const done = (blob: Blob | null) => (blob ? resolve(blob) : reject(new Fault('The browser could not write the picture.')));
    canvas.toBlob(done, type, 0.95);
  });
}
