import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bulk, type Conversation, question, started } from '../src/conversation.ts';
import { toCoco, toJson } from '../src/export.ts';
import { HIGHEST, numbered, readRegions } from '../src/import.ts';
import type { Region } from '../src/regions.ts';

const PICTURE = { name: 'scene.png', width: 200, height: 100 };
const REGIONS: Region[] = [
  { id: 1, shape: { kind: 'box', box: [20, 30, 60, 80] } },
  { id: 4, shape: { kind: 'point', at: [7, 9] }, read: [2, 4, 12, 14] },
  { id: 5, shape: { kind: 'polygon', points: [[20, 30], [60, 30], [20, 80]] } },
];
const CONVERSATION: Conversation = { ...started('c', 'p', 'scene.png', 0), regions: REGIONS };
const shapes = REGIONS.map(({ shape }) => shape);

const through = (file: object, picture = PICTURE) => readRegions(JSON.stringify(file), picture).regions;

test('JSON comes back as it was, numbers included', () => {
  assert.deepEqual(through(toJson(PICTURE, CONVERSATION)), REGIONS.map(({ id, shape }) => ({ id, shape })));
});

test('COCO comes back as it was', () => {
  assert.deepEqual(through(toCoco(PICTURE, CONVERSATION)).map(({ shape }) => shape), shapes);
});

test('COCO says what its readers expect', () => {
  const { images, annotations } = toCoco(PICTURE, CONVERSATION) as { images: unknown[]; annotations: Record<string, unknown>[] };
  assert.deepEqual(images, [{ id: 1, file_name: 'scene.png', width: 200, height: 100 }]);
  assert.deepEqual(annotations.map(({ bbox }) => bbox), [[20, 30, 40, 50], [2, 4, 10, 10], [20, 30, 40, 50]]);
  assert.deepEqual(annotations.map(({ area }) => area), [2000, 100, 1000]);
  assert.deepEqual(annotations[2]?.segmentation, [[20, 30, 60, 30, 20, 80]]);
  assert.deepEqual(annotations[1]?.keypoints, [7, 9, 2]);
});

test('how sure the model was is written where it is known', () => {
  const rounds = [
    { ...question('What is <region1>?', REGIONS), answer: 'A cup.', probability: 0.9, state: 'done' as const },
    { ...bulk(REGIONS), each: [{ region: 1, text: 'A cup.', probability: 0.8 }, { region: 4, text: 'A hat.' }] },
  ];
  const json = toJson(PICTURE, { ...CONVERSATION, rounds }) as { rounds: Record<string, unknown>[] };
  assert.deepEqual(json.rounds.map(({ probability }) => probability), [0.9, undefined]);
  const coco = toCoco(PICTURE, { ...CONVERSATION, rounds }) as { annotations: Record<string, unknown>[] };
  const said = coco.annotations.map(({ caption, caption_probability }) => [caption, caption_probability]);
  assert.deepEqual(said, [['A cup.', 0.8], ['A hat.', undefined], [undefined, undefined]]);
});

test('a file about a picture of another size is scaled', () => {
  const [first] = through(toCoco(PICTURE, CONVERSATION), { name: 'scene.png', width: 400, height: 200 });
  assert.deepEqual(first?.shape, { kind: 'box', box: [40, 60, 120, 160] });
});

test('lists of boxes, the command line’s JSON and every unit are read', () => {
  const box = { kind: 'box', box: [20, 30, 60, 80] };
  for (const file of [
    [[20, 30, 60, 80]],
    [{ box: [20, 30, 60, 80] }],
    [{ bbox: [20, 30, 40, 50] }],
    { regions: [{ id: 'region1', box: [0.1, 0.3, 0.3, 0.8], coords: 'norm' }] },
    { regions: [{ id: 1, box: [100, 300, 300, 800], coords: 'norm1000' }] },
    { answer: 'x', regions: [{ id: 1, box: [20, 30, 60, 80], origin: 'given' }], image: { path: 'x.png', width: 200, height: 100 } },
  ]) {
    const [region] = through(file);
    assert.equal(region?.shape.kind, 'box');
    const got = region?.shape.kind === 'box' ? region.shape.box : [];
    assert.ok(got.every((value, index) => Math.abs(value - (box.box[index] as number)) < 1e-9), JSON.stringify(file));
  }
});

test('what was described is read, and a box that was grown around a point is that point', () => {
  const image = { path: 'x.png', width: 200, height: 100 };
  const given = { id: 2, box: [20, 30, 60, 80], origin: 'given' };
  const grown = { id: 5, box: [24, 29, 38, 43], origin: 'point' };
  const file = { descriptions: [given, grown].map((region) => ({ region, text: 'A hat.' })), image };
  assert.deepEqual(through(file), [
    { id: 2, shape: { kind: 'box', box: [20, 30, 60, 80] } },
    { id: 5, shape: { kind: 'point', at: [31, 36] } },
  ]);
  assert.deepEqual(through({ regions: [grown], image }), through(file).slice(1));
});

test('what lies outside is counted and left out', () => {
  assert.deepEqual(readRegions('[[0,0,10,10],[300,0,310,10]]', PICTURE), {
    regions: [{ id: null, shape: { kind: 'box', box: [0, 0, 10, 10] } }],
    outside: 1,
  });
});

test('files that are wrong say where', () => {
  const cases: [string, RegExp][] = [
    ['<xml>', /not JSON/],
    ['{}', /neither/],
    ['[]', /no regions/],
    ['[[1,2,3]]', /regions\[0\]\.box has to be 4 numbers/],
    ['[[1,2,3,null]]', /regions\[0\]\.box/],
    ['[[5,5,5,9]]', /regions\[0\]\.box is empty/],
    ['[{"polygon":[[1,2],[3,4]]}]', /three corners/],
    ['{"regions":[{"box":[1,2,3,4],"coords":"percent"}]}', /coords/],
    ['{"annotations":[{"bbox":"x"}]}', /annotations\[0\]\.bbox/],
    ['{"images":[{"id":1,"file_name":"a"},{"id":2,"file_name":"b"}],"annotations":[]}', /2 pictures/],
    ['null', /neither/],
    ['{"descriptions":[{"region":{"box":[1,2]}}]}', /regions\[0\]\.box has to be 4 numbers/],
    ['{"descriptions":{}}', /neither/],
  ];
  for (const [text, message] of cases) assert.throws(() => readRegions(text, PICTURE), message, text);
});

test('regions keep their numbers where these are free; the others count on', () => {
  const shape = shapes[0] as Region['shape'];
  const numbers = (ids: (number | null)[], ...taken: number[]) => numbered(ids.map((id) => ({ id, shape })), new Set(taken)).map(({ id }) => id);
  assert.deepEqual(numbers([null, 1, 3, null]), [4, 1, 3, 5]);
  assert.deepEqual(numbers([1, 2, 3], 2, 7), [1, 8, 3]);
  assert.deepEqual(numbers([4, 4]), [4, 5]);
  assert.deepEqual(numbers([HIGHEST, HIGHEST + 1, 1234567]), [999, 1000, 1001]);
});
