import assert from 'node:assert/strict';
import { test } from 'node:test';
import { chatEvents, events, faultFrom } from '../src/api.ts';

async function* from(text: string): AsyncGenerator<string> {
  yield* text.split('\n');
}

async function collected(text: string): Promise<string[]> {
  const all: string[] = [];
  for await (const data of events(from(text))) all.push(data);
  return all;
}

test('events are read up to the end, comments skipped', async () => {
  assert.deepEqual(await collected('data: 1\n\n: still here\n\ndata:2\ndata: 3\n\ndata: [DONE]\n\ndata: 4\n\n'), ['1', '2\n3']);
});

test('a stream that breaks off is a fault', async () => {
  await assert.rejects(collected('data: 1\n\n'), /too early/);
});

test('boxes are found in a chunk or in its delta', () => {
  const regions = [{ id: 'region7', box: [1, 2, 3, 4] as const }];
  const found = { kind: 'regions', regions: [{ id: 7, box: [1, 2, 3, 4] }] };
  const end = (probability: number | null) => ({ kind: 'finish', reason: 'stop', probability });
  assert.deepEqual([...chatEvents({ regions, choices: [] })], [found]);
  assert.deepEqual([...chatEvents({ choices: [{ delta: { content: 'x', regions }, finish_reason: 'stop' }] })], [
    { kind: 'text', text: 'x' }, found, end(null),
  ]);
  assert.deepEqual([...chatEvents({ choices: [{ delta: { probability: 0.5 }, finish_reason: 'stop' }] })], [end(0.5)]);
  assert.throws(() => [...chatEvents({ error: { message: 'the engine failed' } })], /The engine failed\. Try again/);
});

test('faults say what to do, without the names of fields', () => {
  const param = 'messages[0].content[0].regions[1].box';
  assert.equal(faultFrom(422, { message: `${param}: it is empty`, param, code: 'invalid_region' }).message, 'It is empty. Draw the region anew.');
  assert.match(faultFrom(429, { message: 'too many requests are waiting' }, 5).message, /in 5 seconds/);
  assert.match(faultFrom(400, { code: 'context_length_exceeded', message: 'full' }).message, /new conversation/);
  assert.equal(faultFrom(418, {}).message, 'The server answered with status 418.');
});
