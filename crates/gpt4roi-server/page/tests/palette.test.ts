import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { colour, colourClass } from '../src/palette.ts';

test('the style sheet and the command line have the same colours', () => {
  const sheet = readFileSync('src/app.css', 'utf8');
  const styled = [...sheet.matchAll(/\.(c\d) \{ --c: (#\w+); --on-c: (#\w+)/g)].map(([, name, fill]) => [name, fill]);
  const ids = styled.map((_, index) => index + 1);
  assert.deepEqual(styled, ids.map((id) => [colourClass(id), colour(id).fill]));

  const annotate = readFileSync('../../gpt4roi-cli/src/annotate.rs', 'utf8');
  const [list] = /\[\[\d[\d, [\]]*\]\]/.exec(annotate) ?? ['[]'];
  const hex = (JSON.parse(list) as number[][]).map((rgb) => `#${rgb.map((part) => part.toString(16).padStart(2, '0')).join('')}`);
  assert.deepEqual(hex, ids.map((id) => colour(id).fill));
});

test('colours come round again', () => {
  assert.equal(colour(1), colour(7));
  assert.equal(colourClass(6), 'c5');
});

test('numbers are legible on their colours (WCAG, 4.5 to 1)', () => {
  const linear = (part: number) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const luminance = (hex: string) =>
    [0.2126, 0.7152, 0.0722].reduce((sum, weight, index) => sum + weight * linear(parseInt(hex.slice(1 + 2 * index, 3 + 2 * index), 16) / 255), 0);
  for (let id = 1; id <= 6; id++) {
    const [light, dark] = [luminance(colour(id).fill), luminance(colour(id).ink)].sort((a, b) => b - a) as [number, number];
    assert.ok((light + 0.05) / (dark + 0.05) >= 4.5, `${id}`);
  }
});
