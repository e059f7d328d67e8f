import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  bulk, completed, declared, messages, nextId, question, type Round, settled, started, titleOf, unknownMentions,
} from '../src/conversation.ts';
import type { Box, Region } from '../src/regions.ts';

const box = (id: number, ...xyxy: [number, number, number, number]): Region => ({ id, shape: { kind: 'box', box: xyxy as Box } });
const ONE = box(1, 0, 0, 10, 10);
const TWO = box(2, 20, 0, 30, 10);

function answered(round: Round, answer: string): Round {
  return { ...round, answer, state: 'done' };
}

function wire(rounds: Round[], regions: Region[]) {
  const [first, ...rest] = messages(rounds, regions, 'sha256:0');
  const [image, text] = first?.content as unknown as [{ regions: { id: string; box: number[] }[] }, { text: string }];
  return { regions: image.regions.map(({ id, box }) => `${id} ${box}`), texts: [text.text, ...rest.map(({ content }) => content)] };
}

test('a first question carries the picture and its regions', () => {
  const sent = messages([question('What is <region2>?', [ONE, TWO])], [ONE, TWO], 'sha256:0');
  assert.deepEqual(sent, [{
    role: 'user',
    content: [
      {
        type: 'image_ref',
        id: 'sha256:0',
        regions: [
          { id: 'region2', coords: 'pixel', box: [20, 0, 30, 10] },
          { id: 'region1', coords: 'pixel', box: [0, 0, 10, 10] },
        ],
      },
      { type: 'text', text: 'What is <region2>?' },
    ],
  }]);
});

test('later rounds carry what was said; bulk, failed and empty rounds are left out', () => {
  const rounds = [
    answered(question('What is <region1>?', [ONE]), 'An octopus.'),
    { ...bulk([ONE]), state: 'done' as const },
    { ...question('Lost?', []), state: 'failed' as const },
    question('And <region2>?', [ONE, TWO]),
  ];
  assert.deepEqual(wire(rounds, [ONE, TWO]).texts, ['What is <region1>?', 'An octopus.', 'And <region2>?']);
  assert.deepEqual(messages(rounds, [ONE, TWO], 'x').map(({ role }) => role), ['user', 'assistant', 'user']);
});

test('a region that was moved goes under another number in what was said of it before', () => {
  const moved = box(1, 5, 5, 15, 15);
  const rounds = [
    answered(question('What is <region1>?', [ONE, TWO]), 'region1 is an octopus.'),
    question('What is <region1> now?', [moved, TWO]),
  ];
  const { regions, texts } = wire(rounds, [moved, TWO]);
  assert.deepEqual(texts, ['What is <region3>?', 'region3 is an octopus.', 'What is <region1> now?']);
  assert.deepEqual(regions, ['region3 0,0,10,10', 'region1 5,5,15,15', 'region2 20,0,30,10']);
});

test('a region that was deleted is still declared for the rounds that mention it', () => {
  const rounds = [answered(question('What is <region1>?', [ONE, TWO]), 'An octopus.'), question('And <region2>?', [TWO])];
  const { regions, texts } = wire(rounds, [TWO]);
  assert.deepEqual(regions, ['region1 0,0,10,10', 'region2 20,0,30,10']);
  assert.equal(texts[0], 'What is <region1>?');
});

test('of too many regions, those that are talked about are declared', () => {
  const many = Array.from({ length: 150 }, (_, index) => box(index + 1, index, 0, index + 10, 10));
  const rounds = [answered(question('What is <region149>?', many), 'A cat.'), question('And <region150>?', many)];
  const ids = declared(messages(rounds, many, 'x'));
  assert.equal(ids.size, 100);
  assert.ok(ids.has(149) && ids.has(150));
});

test('numbers are never used twice', () => {
  assert.equal(nextId([], []), 1);
  assert.equal(nextId([TWO], []), 3);
  assert.equal(nextId([], [question('<region2>', [TWO])]), 3);
});

test('mentions of nothing are found before the server is asked', () => {
  assert.deepEqual(unknownMentions('<region1> and <region7>, region 9', [ONE]), [7]);
});

test('boxes that come back are learned, and coordinates become regions', () => {
  const point: Region = { id: 1, shape: { kind: 'point', at: [5, 5] } };
  const round = answered(question('Is <region1> like [0.1, 0.2, 0.3, 0.4]?', [point, TWO]), 'region3 is red.');
  const resolved = [{ id: 1, box: [2, 2, 8, 8] as Box }, { id: 2, box: [20, 0, 30, 10] as Box }, { id: 3, box: [9, 9, 19, 19] as Box }];
  const result = settled(round, resolved, [point, TWO], new Set([1, 2]), 8);
  assert.deepEqual(result.regions.map(({ id, read }) => [id, read]), [[1, [2, 2, 8, 8]], [2, undefined], [8, [9, 9, 19, 19]]]);
  assert.equal(result.round.question, 'Is <region1> like <region8>?');
  assert.equal(result.round.answer, 'region8 is red.');
  assert.deepEqual(result.round.regions.map(({ id }) => id), [1, 8]);
  assert.deepEqual(result.fresh, [8]);
});

test('coordinates of a region that is there mention it', () => {
  const round = answered(question('What is in [20, 0, 30, 10]?', [ONE, TWO]), 'region3 is red.');
  const result = settled(round, [{ id: 3, box: [20, 0, 30, 10] }], [ONE, TWO], new Set([1, 2]), 3);
  assert.deepEqual(result.regions, [ONE, TWO]);
  assert.equal(result.round.question, 'What is in <region2>?');
  assert.equal(result.round.answer, 'region2 is red.');
  assert.deepEqual(result.round.regions, [TWO]);
});

test('a region that was moved while its answer came learns nothing of where it was', () => {
  const round = question('What is <region1>?', [ONE]);
  const moved = box(1, 5, 5, 15, 15);
  const { regions } = settled(round, [{ id: 1, box: [0, 0, 10, 10] }], [moved], new Set([1]), 2);
  assert.deepEqual(regions, [moved]);
});

test('titles are short and plain', () => {
  assert.equal(titleOf('What is <region1>?'), 'What is region1?');
  assert.equal(titleOf('x'.repeat(100)).length, 60);
});

test('what an earlier edition of the page stored is completed', () => {
  const { closer, revision, ...stored } = { ...started('c', 'p', 'scene.png', 7), draft: 'And what', rounds: [question('What?', [])] };
  assert.deepEqual(completed(stored), { ...stored, closer: false, revision: 0 });
});
